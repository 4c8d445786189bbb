"""The command line: one file per command; options.py holds what several share, main.py registers them, render.py prints.

start.py is where the program begins, before anything slow is imported.
"""
