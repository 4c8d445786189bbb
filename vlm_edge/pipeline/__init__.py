"""Joins families and backends into build, run, verify, evaluate and bench."""
