import torch

from minimind.lora.adapter import merge_adapter
from minimind.lora.model import add_adapters, collect_adapter
from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.lora import LoraRecipe
from minimind.stages.sft import SFT

run = Run.resolve(
    stage="sft", from_checkpoint="none", model="tiny", max_steps=31, batch_size=4, seq_len=128
)
config, stage = run.resolved.config, SFT(run.resolved.recipe)
*training, held_out = [run.loader.batches(step)[0] for step in range(31)]
base = Transformer(config)
base.init_weights(0)
optimizer = torch.optim.AdamW(base.parameters(), lr=3e-3)
for batch in training:  # a base that knows something
    (stage.loss(base, batch).total / batch.num_targets).backward()
    optimizer.step()
    optimizer.zero_grad()
weights = {name: value.detach().clone() for name, value in base.state_dict().items()}


@torch.no_grad()
def loss(model):
    return stage.loss(model, held_out).total.item() / held_out.num_targets


print(f"the base alone:               {loss(base):.3f}")
torch.manual_seed(0)
chosen = LoraRecipe().choose_ranks(config)
add_adapters(base, chosen.ranks, chosen.alphas, seed=0)
print(f"new adapters, B = 0:          {loss(base):.3f}")
with torch.no_grad():
    for name, parameter in base.named_parameters():
        if name.endswith("lora_B"):
            parameter.normal_(0.0, 1.0)
print(f"B drawn at random instead:    {loss(base):.3f}")
adapter = collect_adapter(base, dict(base.named_parameters()))
merged = Transformer(config)
merged.load_state_dict(merge_adapter(config, weights, adapter, "the example"))
print(f"the same, merged into W:      {loss(merged):.3f}")
