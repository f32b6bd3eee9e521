"""Measures the speed and the memory of a training step: rows of every stage, ours and the rivals',
take steps in turns."""
