"""Many rows -> their answers: what `batch` does, whatever ends a run.

input.py reads the rows and log.py is the file that is written, which a second run continues; batch.py asks, in this process,
and ray_engine.py on a Ray cluster.
"""
