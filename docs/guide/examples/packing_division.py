import torch

from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.sft import SFT

run = Run.resolve(
    stage="sft", from_checkpoint="none", model="tiny", max_steps=1, batch_size=2, seq_len=256,
    set={"micro_batch_size": 1},
)  # fmt: skip
long, short = run.loader.batches(0)
keep = (short.labels_BT != -100).cumsum(-1) <= 8  # a row with eight targets
short = type(short)(
    **{name: getattr(short, name) for name in short.__dataclass_fields__}
    | {"labels_BT": short.labels_BT.where(keep, -100), "num_targets": 8}
)
model = Transformer(run.resolved.config)
model.init_weights(0)
stage = SFT(run.resolved.recipe)


def gradient(batches, divide):
    model.zero_grad()
    for batch in batches:
        (stage.loss(model, batch).total / divide(batch)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


targets = long.num_targets + short.num_targets
once = gradient([long, short], lambda batch: targets)
means = gradient([long, short], lambda batch: 2 * batch.num_targets)
ratio = long.num_targets / short.num_targets
print(f"targets of the two micro-batches: {long.num_targets} and {short.num_targets}")
print(f"weight of a token of the second beside one of the first: 1 and {ratio:.0f}")
print(f"cosine of the two gradients: {torch.cosine_similarity(once, means, dim=0):.2f}")
print(f"length of the second: {means.norm() / once.norm():.2f} of the first")
