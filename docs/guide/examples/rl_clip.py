from types import SimpleNamespace

import torch

from minimind.stages.policy_loss import PolicyLoss

one = torch.ones(1)


def gradient(loss_type, ratio, advantage, high):
    objective = PolicyLoss(loss_type=loss_type, beta=0.0, epsilon=0.2, epsilon_high=high)
    log_prob = torch.tensor([-1.0], requires_grad=True)
    batch = SimpleNamespace(
        old_R=log_prob.detach() - torch.tensor([ratio]).log(),
        advantages_R=advantage * one, reference_R=None, weights_R=one, sample_R=None,
    )  # fmt: skip
    objective.loss(log_prob, batch, slice(None)).sum().backward()
    return log_prob.grad.item()


print("push on the log-probability: how much a step of gradient descent raises it")
print("ratio   grpo A=+1   grpo A=-1   cispo A=+1   no clip A=+1")
for ratio in (0.5, 0.9, 1.0, 1.1, 1.3, 3.0, 8.0):
    columns = (("grpo", 1, 0.2), ("grpo", -1, 0.2), ("cispo", 1, 4.0), ("grpo", 1, 1e9))
    pushes = [0.0 - gradient(kind, ratio, sign, high) for kind, sign, high in columns]
    print(f"{ratio:<5}{pushes[0]:>12.2f}{pushes[1]:>12.2f}{pushes[2]:>13.2f}{pushes[3]:>15.2f}")
