"""The Triton bodies. The only folder that imports triton; loaded when one is first chosen.

Each name is that of a Form (form.py), whose signature it has. Around each, an operator of the same
name in torch.ops.minimind_kernels is what torch.compile sees.
"""

from .cross_entropy import cross_entropy_grad, cross_entropy_loss, cross_entropy_loss_and_grad
from .distillation import distillation_loss, distillation_loss_and_grad
from .expert_gemm import expert_ffn_backward, expert_ffn_forward
from .kl import kl_grad, kl_loss, kl_loss_and_grad
from .moe_routing import moe_routing_backward, moe_routing_forward
from .operators import register
from .rms_norm import (
    add_rms_norm_backward,
    add_rms_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from .rope import norm_rope_backward, norm_rope_forward, rope_backward, rope_forward
from .swiglu import swiglu_backward, swiglu_forward

__all__ = [
    "add_rms_norm_backward",
    "add_rms_norm_forward",
    "cross_entropy_grad",
    "cross_entropy_loss",
    "cross_entropy_loss_and_grad",
    "distillation_loss",
    "distillation_loss_and_grad",
    "expert_ffn_backward",
    "expert_ffn_forward",
    "kl_grad",
    "kl_loss",
    "kl_loss_and_grad",
    "moe_routing_backward",
    "moe_routing_forward",
    "norm_rope_backward",
    "norm_rope_forward",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_backward",
    "rope_forward",
    "swiglu_backward",
    "swiglu_forward",
]

for _name in __all__:
    register(globals()[_name])
