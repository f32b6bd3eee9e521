"""Provides the operations of a transformer, each in PyTorch and, on a GPU, as a Triton kernel.

backend.py chooses the form that runs. The package needs nothing but torch, and triton on a GPU.
Each module below enters its operations in `OPS`.
"""

from .expert_gemm import expert_ffn as expert_ffn
from .linear_distillation import linear_distillation as linear_distillation
from .linear_kl import linear_kl as linear_kl
from .linear_loss import linear_cross_entropy as linear_cross_entropy
from .linear_loss import linear_log_prob as linear_log_prob
from .linear_token_loss import linear_token_loss as linear_token_loss
from .moe_routing import Routing as Routing
from .moe_routing import moe_routing as moe_routing
from .op import OPS as OPS
from .rms_norm import add_rms_norm as add_rms_norm
from .rms_norm import rms_norm as rms_norm
from .rope import qk_rope as qk_rope
from .swiglu import swiglu as swiglu
from .swiglu import swiglu_linear as swiglu_linear
