import torch
from minimind_kernels import rms_norm
from minimind_kernels.rms_norm import rms_norm_reference

torch.manual_seed(0)
x = (torch.randn(256, 768) * 30).bfloat16()
weight = torch.ones(768)


def norm_in_bf16(x):
    """Adds the squares one by one in bf16."""
    total = torch.zeros(len(x), dtype=torch.bfloat16)
    for column in x.unbind(1):
        total = total + column * column
    return x / torch.sqrt(total[:, None] / 768 + 1e-6)


exact = rms_norm_reference(x.double(), weight.double(), 1e-6)
for name, y in (("bf16", norm_in_bf16(x)), ("fp32", rms_norm(x, weight, 1e-6))):
    error = (y.double() - exact).norm() / exact.norm()
    print(f"squares added in {name}: off by {error:.2%}")
