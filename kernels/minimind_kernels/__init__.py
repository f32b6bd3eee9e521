"""Operations of a transformer, each in PyTorch and, on a GPU, as a Triton kernel.

backend.py says which form runs. Needs nothing but torch, and triton on a GPU.
"""

from .expert_gemm import expert_ffn
from .linear_distillation import linear_distillation
from .linear_kl import linear_kl
from .linear_loss import linear_cross_entropy, linear_log_prob
from .linear_token_loss import linear_token_loss
from .moe_routing import Routing, moe_routing
from .rms_norm import add_rms_norm, rms_norm
from .rope import qk_rope
from .rope_rows import rope_rows
from .swiglu import swiglu, swiglu_linear

__all__ = [
    "Routing",
    "add_rms_norm",
    "expert_ffn",
    "linear_cross_entropy",
    "linear_distillation",
    "linear_kl",
    "linear_log_prob",
    "linear_token_loss",
    "moe_routing",
    "qk_rope",
    "rms_norm",
    "rope_rows",
    "swiglu",
    "swiglu_linear",
]
