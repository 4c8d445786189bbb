"""Images in, views out: loading, saliency, tiling and resizing, in NumPy and Pillow."""
