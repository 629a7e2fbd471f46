"""Measurements, each one a command: ``python -m benchmarks.NAME [--json FILE]``."""
