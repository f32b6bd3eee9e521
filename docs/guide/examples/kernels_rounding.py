import torch
from minimind_kernels import rms_norm

torch.manual_seed(0)
x = (torch.randn(256, 768) * 30).bfloat16()
weight = torch.ones(768)


def in_bf16(x):
    """Computes each step in bf16, as a model cast to bf16 does without care."""
    return x / torch.sqrt(torch.cumsum(x * x, -1)[:, -1:] / 768 + 1e-6) * weight.bfloat16()


exact = rms_norm(x.double(), weight.double(), 1e-6)
for name, y in (
    ("statistics in bf16", in_bf16(x)),
    ("statistics in fp32", rms_norm(x, weight, 1e-6)),
):
    error = (y.double() - exact).norm() / exact.norm()
    print(f"{name}: off by {error:.2%}")
