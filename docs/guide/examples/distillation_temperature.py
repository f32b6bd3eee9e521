import torch

logits = torch.tensor([6.0, 4.0, 3.5, 1.0, 0.0])
print("T     teacher's probabilities            entropy")
for temperature in (1.0, 1.5, 4.0):
    p = (logits / temperature).softmax(-1)
    entropy = -(p * p.log()).sum().item()
    print(f"{temperature:<5} {'  '.join(f'{x:.3f}' for x in p.tolist())}{entropy:>11.2f}")


def gradient(temperature, factor):
    student = torch.tensor([2.0, 2.0, 0.0, 0.0, 1.0], requires_grad=True)
    p = (logits / temperature).softmax(-1)
    log_q = (student / temperature).log_softmax(-1)
    (factor * (p * (p.log() - log_q)).sum()).backward()
    return student.grad.norm().item()


print("T     length of the student's gradient: KL alone   T² · KL")
for temperature in (1.0, 1.5, 4.0):
    alone, scaled = gradient(temperature, 1.0), gradient(temperature, temperature**2)
    print(f"{temperature:<5}{alone:>45.3f}{scaled:>10.3f}")
