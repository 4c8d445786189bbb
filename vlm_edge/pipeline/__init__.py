"""Joins families and backends: one subpackage for each thing that can be done with a model, each with a map of its own.

answering         an image and a question -> an answer
batch_inference   many rows -> their answers, in one file that a second run continues
evaluating        a data file -> scores; sweeping asks it in many ways and names the best
explaining        an answer -> a picture of what the model was shown
planning          a configuration -> the plan of its memory and time
measuring         a bundle on this machine -> its speed and its peak, beside what was planned
exporting         a checkpoint -> proven graphs in a bundle
quantizing        a checkpoint's decoder -> 4 bits, as an AWQ checkpoint and as a graph
building          a checkpoint and a recipe -> a bundle, in one run of all of these
checking          a bundle -> whether it is whole and right; a machine -> what it lacks

Imports only go down: pyproject.toml has the order, from building and sweeping to exporting. Shared by all are embedded.py, where
the embedded bundle lies; machine.py, what this machine is; written.py, files for a user; figure.py and html_page.py, what is drawn.
"""
