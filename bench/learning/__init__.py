"""Measures which way of training learns most from the same tokens, and from the same time. How fast
a step is belongs to bench.train."""
