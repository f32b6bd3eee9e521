"""The row `original` of bench.train_step, and whether it computes what our model computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.documents import PaddedSteps, StepData, one_row
from bench.original import OriginalModel, original_loss
from bench.train_rows import RowSpec
from minimind.engine.stage import BuildContext
from minimind.model.state_dict import split_fused
from minimind.stages import STAGES


class OriginalRow:
    """The same model in fp32 as plain modules, documents padded, AdamW as PyTorch has it."""

    def __init__(self, spec: RowSpec) -> None:
        run, documents = spec.run, spec.documents
        assert documents is not None, "a row of pretraining"
        self.precision = "fp32"
        self._device, self._clipping = run.device.torch_device, run.recipe.gradient_clipping
        self.steps = PaddedSteps(
            documents, rows=spec.original_batch, accumulation=spec.accumulation, steps=spec.steps
        )
        ours = STAGES[run.stage](run.recipe).build_models(BuildContext(config=run.config)).policy
        self.module = OriginalModel(run.config, documents.max_tokens)
        self.module.load_split(split_fused(run.config, dict(ours.named_parameters())))
        self.module.to(self._device)
        self._optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=run.learning_rate,
            betas=run.recipe.betas,
            eps=run.recipe.adam_eps,
            weight_decay=run.recipe.weight_decay,
        )

    def data(self, index: int) -> StepData[tuple[Tensor, Tensor]]:
        return self.steps.step(index)

    def step(self, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
        total = torch.zeros((), device=self._device)
        for ids_BT, labels_BT in batches:
            ids_BT, labels_BT = ids_BT.to(self._device), labels_BT.to(self._device)
            loss = original_loss(self.module(ids_BT), labels_BT) / len(batches)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(self.module.parameters(), self._clipping or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total


def compare_first_losses(spec: RowSpec) -> tuple[float, float]:
    """The loss of `original` and of our model on its first documents: padded there, packed here,
    both in fp32 from the weights that every row starts from."""
    run, device = spec.run, spec.run.device.torch_device
    assert spec.documents is not None, "a row of pretraining"
    row = OriginalRow(spec)
    stage = STAGES[run.stage](run.recipe)
    ours = stage.build_models(BuildContext(config=run.config)).policy.to(device)
    first = row.steps.ids(0)[: spec.original_batch]
    batch = one_row(first, spec.documents.pad_id).to(device)
    ids_BT, labels_BT = (x.to(device) for x in row.data(0).batches[0])
    with torch.no_grad():
        loss = stage.loss(ours, batch)
        return float(original_loss(row.module(ids_BT), labels_BT)), float(loss.total / loss.count)
