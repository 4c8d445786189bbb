"""Activation-aware weight quantization of a decoder, one layer at a time. Needs torch; knows no family and no backend."""
