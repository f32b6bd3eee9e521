import torch

from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.dpo import DPO, DPORecipe
from minimind.stages.reference import Reference, document_log_probs
from minimind.stages.sft import SFT

BASE_STEPS, STEPS = 100, 20
options = {"from_checkpoint": "none", "model": "tiny", "batch_size": 4, "seq_len": 256}
chats = Run.resolve(stage="sft", max_steps=BASE_STEPS, **options)
pairs = Run.resolve(
    stage="dpo", max_steps=STEPS, **options, set={"loss_type": "simpo", "micro_batch_size": 4}
)
base = Transformer(chats.resolved.config)
base.init_weights(0)
stage, optimizer = SFT(chats.resolved.recipe), torch.optim.AdamW(base.parameters(), lr=3e-3)
for step in range(BASE_STEPS):  # a base that answers a little
    batches = chats.loader.batches(step)
    for batch in batches:
        (stage.loss(base, batch).total / sum(one.count for one in batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def prefer(with_reference):
    policy = Transformer(base.config)
    policy.load_state_dict(base.state_dict())
    dpo = DPO(DPORecipe(beta=0.15))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    rows = []
    for step in range(STEPS):
        (batch,) = pairs.loader.batches(step)
        with torch.no_grad():
            before = document_log_probs(base, batch)[0]
        if with_reference:
            table = torch.zeros(pairs.loader.num_units, 2)
            table[batch.unit_ids_P.clamp(min=0)] = before
            dpo.reference = Reference(values=table)
        loss = dpo.loss(policy, batch)
        is_pair = batch.unit_ids_P >= 0
        chosen, rejected = (
            (loss.metrics[f"{side}_log_prob"] - before[is_pair, number].sum()).item() / batch.count
            for number, side in enumerate(("chosen", "rejected"))
        )
        rows.append((loss.total.item() / batch.count, chosen, rejected))
        (loss.total / batch.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [sum(column) / 5 for column in zip(*rows[-5:], strict=True)]


print("mean of the last 5 steps   loss   change of log-probability: chosen  rejected")
for name, found in (("with the reference", prefer(True)), ("without it", prefer(False))):
    print("{:<25}{:>7.3f}{:>35.2f}{:>10.2f}".format(name, *found))
