import torch

from minimind.inference.batch_settings import BatchSettings
from minimind.inference.filters import filtered_probs
from minimind.inference.sampling import SamplingParams

words = ["river", "town", "goat", "sum", "xq"]
logits = torch.tensor([[4.0, 3.0, 2.5, 0.5, -2.0]])
print(f"{'':<34}" + "".join(f"{word:>8}" for word in words))
for options in (
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"temperature": 2.0, "top_k": 4},
    {"temperature": 2.0, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.5},
):
    params = SamplingParams(**options)
    settings = BatchSettings.build([params], [0], len(words), torch.device("cpu"))
    (probs,) = filtered_probs(settings.drawn.take(logits), settings.drawn, settings.used).tolist()
    named = ", ".join(f"{name} {value}" for name, value in options.items())
    print(f"{named:<34}" + "".join(f"{p:>8.3f}" for p in probs))
