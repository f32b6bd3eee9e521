"""Measures how quick a training step is, what it holds and how fast it learns: rows of every stage,
ours and the rivals', take steps in turns."""
