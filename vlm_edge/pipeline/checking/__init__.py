"""A bundle -> whether it is whole and computes what its model computes: what `verify` does; and what `doctor` says of a machine.

verify.py hashes the files and asks vision.py, decoder.py and awq.py about the parts; checks.py is what they answer. doctor.py
judges what ../machine.py has found.
"""
