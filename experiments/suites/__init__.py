"""Suites of `python -m experiments.compare`: one file each, with get_suite()."""
