"""A checkpoint and a recipe -> a bundle that was verified and measured: what `build` does.

preflight.py tells whether it can be done, with what plan.py counts for each step; build.py does the steps of steps.py, in their
order, and record.py remembers which are finished. nano_bundle.py makes the embedded bundle.
"""
