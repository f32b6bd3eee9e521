import torch

from minimind.stages.policy_loss import k3

torch.manual_seed(0)
policy = torch.randn(50).log_softmax(-1)
print("true KL   estimate      mean   deviation   below 0")
for distance in (0.1, 0.5, 1.0):
    reference = (policy + distance * torch.randn(50)).log_softmax(-1)
    true = (policy.exp() * (policy - reference)).sum().item()
    drawn = torch.multinomial(policy.exp(), 20_000, replacement=True)
    log_prob, log_ref = policy[drawn], reference[drawn]
    for name, estimate in (("plain", log_prob - log_ref), ("k3", k3(log_prob, log_ref))):
        mean, deviation = estimate.mean().item(), estimate.std().item()
        below = (estimate < 0).float().mean().item()
        print(f"{true:>7.3f}   {name:<8}{mean:>10.3f}{deviation:>12.3f}{below:>10.0%}")
