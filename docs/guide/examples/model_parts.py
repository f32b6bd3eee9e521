import torch
from torch import nn

from minimind.config.model import load_model_config
from minimind.model.transformer import RMSNorm, Transformer
from minimind.run import Run
from minimind.stages.pretrain import Pretrain

STEPS = 80
NO_POSITIONS = {"rope_type": "linear", "factor": 1e9}  # every angle is 0
run = Run.resolve(model="tiny", max_steps=STEPS + 8, batch_size=4, seq_len=128)
batches = [run.loader.batches(step) for step in range(STEPS + 8)]
stage = Pretrain(run.resolved.recipe)


def loss_after_training(change=lambda model: None, **fields):
    fields = {"vocab_size": run.resolved.config.vocab_size} | fields
    model = Transformer(load_model_config("tiny", fields))
    model.init_weights(0)
    change(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, micro_batches in enumerate(batches[:STEPS]):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 20)
        count = sum(batch.num_targets for batch in micro_batches)
        for batch in micro_batches:
            (stage.loss(model, batch).total / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    held_out = [batch for micro_batches in batches[STEPS:] for batch in micro_batches]
    with torch.no_grad():
        total = sum(float(stage.loss(model, batch).total) for batch in held_out)
    return model.config.num_parameters, total / sum(batch.num_targets for batch in held_out)


def without_norms(model):
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = lambda x, residual=None: 2 * (x if residual is None else x + residual,)


print("tiny, after 80 steps               parameters   held-out loss")
for name, (parameters, loss) in {
    "as it is": loss_after_training(),
    "without RMSNorm before the parts": loss_after_training(without_norms),
    "without QK norm": loss_after_training(use_qk_norm=False),
    "without positions": loss_after_training(rope_scaling=NO_POSITIONS),
    "one key/value head for four": loss_after_training(num_key_value_heads=1),
    "four key/value heads": loss_after_training(num_key_value_heads=4),
}.items():
    print(f"{name:<34}{parameters:>11,}{loss:>16.2f}")
