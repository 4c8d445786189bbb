"""The memory planner: integers in, integers out."""
