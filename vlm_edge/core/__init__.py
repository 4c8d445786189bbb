"""Specifications, bundles, strict loading and contracts: what everything else stands on.

Pydantic and PyYAML are imported when a file is loaded, NumPy by embedding.py alone and Jinja2 by sandbox.py alone, so that a plan
needs neither. No framework: see CONTRIBUTING.md.
"""
