"""How good an answer is: rewards that a user names and the shipped ones. Worker processes import
this package, so it holds no tensors and imports neither PyTorch nor NumPy."""
