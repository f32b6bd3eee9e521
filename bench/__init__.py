"""Benchmarks. Each module runs as `python -m bench.NAME --json FILE`."""
