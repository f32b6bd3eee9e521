"""Operations of a transformer, each in PyTorch and, on a GPU, as a Triton kernel.

backend.py says which form runs. Needs nothing but torch, and triton on a GPU.
"""

from .linear_kl import linear_kl
from .linear_loss import linear_cross_entropy, linear_log_prob
from .rms_norm import add_rms_norm, rms_norm
from .rope import qk_rope
from .swiglu import swiglu

__all__ = [
    "add_rms_norm",
    "linear_cross_entropy",
    "linear_kl",
    "linear_log_prob",
    "qk_rope",
    "rms_norm",
    "swiglu",
]
