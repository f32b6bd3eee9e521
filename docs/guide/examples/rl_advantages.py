from types import SimpleNamespace

import torch

from minimind.stages.advantages import estimate_advantages
from minimind.stages.grpo import GRPO, GRPORecipe

grpo = GRPO(GRPORecipe())
print("rewards of six answers      their advantages")
for rewards in ((1, 0, 0, 0, 0, 0), (1, 1, 1, 0, 0, 0), (1, 1, 1, 1, 1, 0), (1, 1, 1, 1, 1, 1)):
    group = [SimpleNamespace(reward=float(reward), advantage=0.0) for reward in rewards]
    grpo.set_advantages(None, [group])
    print(*rewards, "            ", *(f"{one.advantage:6.2f}" for one in group))

print("PPO: one answer of five tokens, reward 1, values 0.2 0.4 0.3 0.6 0.8")
values = torch.tensor([0.2, 0.4, 0.3, 0.6, 0.8])
for lam in (0.0, 0.95, 1.0):
    advantages, _ = estimate_advantages(
        values, torch.tensor([1.0]), torch.zeros(5, dtype=torch.int64),
        longest=5, gamma=1.0, lam=lam,
    )  # fmt: skip
    print(f"lambda {lam:<6}", *(f"{a:6.2f}" for a in advantages.tolist()))
