"""Activation-aware weight quantization of a decoder, one layer at a time. Needs torch; knows no family and no backend.

calibrate.py and memory_limit.py need no torch: what was asked is checked before it is imported.
"""
