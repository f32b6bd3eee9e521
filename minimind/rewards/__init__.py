"""Judges answers by rewards, and calls tools: shipped ones and functions that a user names.

Worker processes import this package, so it holds no tensors and imports neither PyTorch nor NumPy.
The reinforcement-learning stages turn its numbers into a loss.
"""
