"""Measures what more ranks bring: one training run at each number of ranks, or a prediction."""
