"""Measures each operation beside the lower bound that memory or products set, and beside other
projects' kernels."""

H200_BYTES_PER_S, H200_FLOPS_PER_S = 4.3e12, 780e12
H100_BYTES_PER_S, H100_FLOPS_PER_S = 3.0e12, 780e12
"""Speeds of a copy and of a matrix product on the card through PyTorch, as published by others."""
