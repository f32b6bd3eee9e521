import math

beta = 0.15
print("log-ratio of the pair   margin    loss   weight of the gradient")
for log_ratio in (-20.0, -5.0, 0.0, 5.0, 20.0, 60.0):
    margin = beta * log_ratio
    loss = math.log1p(math.exp(-margin))
    weight = beta / (1 + math.exp(margin))
    print(f"{log_ratio:>21.0f}{margin:>9.2f}{loss:>8.3f}{weight:>25.4f}")
