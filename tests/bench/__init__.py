"""Benchmarks: one module per claim, each measuring against a baseline in the same run.

`python -m tests.bench [NAME] [--json]`. Machines are noisy: rounds of subject and baseline alternate, and medians are
what is printed.
"""
