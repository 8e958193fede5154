"""Mutated files and requests by the thousand: `python -m tests.fuzz --help`."""
