"""The memory planner: sizes of a model and what is asked of it -> bytes by phase, and what would help. No files, no clock.

request.py says what is asked, items.py what a run holds, plan.py sums it up; advise.py and solve.py plan again with something
changed. Bytes are integers; latency.py alone, a forecast, has floats.
"""
