"""Specifications, bundles, strict loading and contracts: standard library, pydantic and PyYAML only."""
