import torch
from minimind_kernels.rope import qk_rope_reference

from minimind.config.model import load_model_config
from minimind.model.rope import rope_tables

config = load_model_config("minimind3")
cos, sin = rope_tables(config, 4096, torch.device("cpu"))
torch.manual_seed(0)
q, k = torch.randn(2, config.head_dim)


def score(query_position, key_position):
    packed = torch.cat([q, k, k]).repeat(2, 1)  # one head: q, k, v side by side
    q_MNH, k_MKH, _ = qk_rope_reference(
        packed, cos, sin, torch.tensor([query_position, key_position]), 1, 1
    )
    return float(q_MNH[0, 0] @ k_MKH[1, 0])


print("positions of query and key   distance   score")
for query, key in ((3, 0), (103, 100), (4003, 4000), (10, 0), (4010, 4000), (4000, 0)):
    print(f"{query:>12} and {key:<12}{query - key:>10}{score(query, key):>10.4f}")
