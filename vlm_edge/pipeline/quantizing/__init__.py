"""A checkpoint's decoder -> 4 bits: what `quantize` does.

quantize.py checks what is asked and run.py does it: calibration_set.py makes what the decoder reads, awq_checkpoint.py writes
the finished layers, and int4_export.py makes them a graph. page.py is the report, with the losses that plot.py draws.
"""
