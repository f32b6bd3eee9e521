"""How far is each operation from what memory or products allow, and from what others make?"""

H200_BYTES_PER_S, H200_FLOPS_PER_S = 4.3e12, 780e12
H100_BYTES_PER_S, H100_FLOPS_PER_S = 3.0e12, 780e12
"""What a copy and a product reach there through PyTorch, as others found."""
