import torch

from minimind.stages.policy_loss import k3

torch.manual_seed(0)
policy = torch.randn(50).log_softmax(-1)
print("distance of the reference   true KL   k1: mean  deviation  below 0   k3: mean  deviation  below 0")
for distance in (0.1, 0.5, 1.0):
    reference = (policy + distance * torch.randn(50)).log_softmax(-1)
    true = (policy.exp() * (policy - reference)).sum().item()
    drawn = torch.multinomial(policy.exp(), 20_000, replacement=True)
    line = f"{distance:<25}{true:>10.3f}"
    k1 = policy[drawn] - reference[drawn]
    for estimate in (k1, k3(policy[drawn], reference[drawn])):
        below = (estimate < 0).float().mean().item()
        line += f"{estimate.mean().item():>11.3f}{estimate.std().item():>11.3f}{below:>9.0%}"
    print(line)
