"""Fair comparisons of methods: `python -m experiments.compare --suite=NAME --workdir=DIR`, see docs/comparing.md."""
