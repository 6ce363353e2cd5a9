"""Benchmarks: each module measures one thing with `run() -> dict[str, float]`; `python -m bench [NAME …]` runs them."""
