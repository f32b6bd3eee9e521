"""Judges answers: rewards and tools that a user names, and the shipped ones.

Worker processes import this package, so it holds no tensors and imports neither PyTorch nor NumPy.
The stages of reinforcement learning, which lie above, turn its numbers into a loss.
"""
