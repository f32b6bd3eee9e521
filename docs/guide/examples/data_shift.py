import dataclasses

import torch

from minimind.model.transformer import Transformer
from minimind.run import Run
from minimind.stages.pretrain import Pretrain

run = Run.resolve(model="tiny", max_steps=41, batch_size=4, seq_len=128)
*training, held_out = [run.loader.batches(step)[0] for step in range(41)]


def train(labels_of):
    torch.manual_seed(0)
    model = Transformer(run.resolved.config)
    model.init_weights(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stage = Pretrain(run.resolved.recipe)
    for batch in training:
        loss = stage.loss(model, dataclasses.replace(batch, labels_BT=labels_of(batch)))
        mean = loss.total / batch.num_targets
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return mean.item(), stage.loss(model, held_out).total.item() / held_out.num_targets


print("labels               training loss  held-out loss of the next token")
print("the next token      {:>14.2f}{:>33.2f}".format(*train(lambda batch: batch.labels_BT)))
print("not shifted         {:>14.2f}{:>33.2f}".format(*train(lambda batch: batch.ids_BT)))
