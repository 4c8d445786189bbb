"""A data file -> scores: what `eval` does.

rows.py reads the file and keeps the log, evaluate.py asks, and metrics.py scores, with text_metrics.py for words and numbers;
paired.py tells by how much one run beats another over the same rows.
"""
