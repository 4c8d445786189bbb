"""One data file asked in many ways: what `eval --sweep` does.

file.py is what is compared. run.py goes from it to the results: sweep.py asks, image by image, with shared_vision.py doing once
what the ways have in common; winner.py judges; report.py and chart.py show what was found.
"""
