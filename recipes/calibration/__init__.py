"""Makes calibration/quantize/: pages, charts and textures with questions and answers, and plain text."""
