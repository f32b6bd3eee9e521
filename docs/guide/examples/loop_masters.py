import torch

torch.manual_seed(0)
start = torch.randn(100_000) * 0.02
gradients = [torch.randn(100_000) for _ in range(50)]
print("learning rate  weights moved: kept in bf16  kept in fp32")
for rate in (4e-8, 1e-5, 1e-3):
    moved = []
    for dtype in (torch.bfloat16, torch.float32):
        weight = torch.nn.Parameter(start.to(dtype))
        before = weight.detach().clone()
        optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
        for gradient in gradients:
            weight.grad = gradient.to(dtype)
            optimizer.step()
        moved.append((weight.detach() != before).float().mean().item())
    print(f"{rate:>13.0e}{moved[0]:>29.1%}{moved[1]:>14.1%}")
