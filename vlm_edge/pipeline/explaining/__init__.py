"""An answer -> a picture of what the model was shown: what `run --explain` does.

explain.py writes the page or the picture, and picture.py draws it: tiles and boxes on the source, every view with its tokens
(view_panels.py), where the tokens went (density.py), and the words (lettering.py).
"""
