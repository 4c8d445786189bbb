"""A bundle on this machine -> its speed and its memory, beside what was planned.

bench.py is `bench`: it times questions, against how fast bandwidth.py finds that memory is read, and bench_chart.py draws it.
measure.py is `plan --measure`: the planned run, done by measured_run.py in a process of its own. own_process.py starts it, or
one that asks a single question; memory_watch.py tells what a stretch of work in this process holds.
"""
