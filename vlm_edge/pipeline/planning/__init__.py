"""A configuration -> a plan: what `plan` does, before anything is loaded.

inputs.py finds what MODEL names; plan.py asks vlm_edge.memory and gathers the report; page.py and chart.py draw it, in the
colours of colors.py. recipe_checks.py tells whether a recipe can be followed.
"""
