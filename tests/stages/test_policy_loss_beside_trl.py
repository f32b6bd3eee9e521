"""The policy's loss and gradients beside those of TRL's GRPO, from the same answers, advantages and
log-probabilities.

TRL pads prompts on the left and answers on the right and runs Hugging Face's model; we pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_folders import assert_gradients_of_hf
from labelled_answers import CONFIG, save
from plain_policy_loss import NEW_TOKENS, Given, give, stage_of
from torch import Tensor

from minimind.stages.trajectory import Trajectory

CAP = 1.1
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"beta": 0.0}, {"loss_type": "grpo"}),
    "divergence": ({"beta": 0.1}, {"loss_type": "grpo", "beta": 0.1}),
    "cold": (
        {"beta": 0.1, "temperature": 0.7},
        {"beta": 0.1, "temperature": 0.7, "loss_type": "grpo"},
    ),
    "bnpo": ({"beta": 0.04, "loss_mean": "token"}, {"loss_type": "bnpo", "beta": 0.04}),
    "dapo": (
        {"beta": 0.0, "loss_mean": "token", "epsilon_high": 0.28},
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "dr_grpo": ({"beta": 0.0, "loss_mean": "length"}, {"loss_type": "dr_grpo"}),
    # Its bound is epsilon_high itself, ours lies so far above 1.
    "cispo": (
        {"beta": 0.0, "loss_type": "cispo", "loss_mean": "token", "epsilon_high": 0.3},
        {"loss_type": "cispo", "epsilon_high": 1.3},
    ),
    "cispo, its bound": (
        {"beta": 0.0, "loss_type": "cispo", "loss_mean": "token"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
    ),
    "gspo": (
        {"beta": 0.0, "ratio_level": "sequence", "epsilon": 0.05},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05},
    ),
    "gspo, divergence": (
        {"beta": 0.1, "ratio_level": "sequence", "epsilon_high": 0.28},
        {
            "beta": 0.1,
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon_high": 0.28,
        },
    ),
    "sampler": ({"beta": 0.1, "sampler_cap": CAP}, {"loss_type": "grpo", "beta": 0.1}),
}  # fmt: skip
"""Our options, and its."""


def inputs_of(given: Given) -> dict[str, Tensor]:
    """As TRL's trainer hands them to its loss."""
    batch, inputs = given.batch, padded_inputs(given.trajectories)
    numbers = {}
    if batch.reference_R is not None:
        numbers["ref_per_token_logps"] = batch.reference_R
    if batch.old_R is not None:
        numbers["old_per_token_logps"] = batch.old_R
        numbers["importance_sampling_ratio"] = (batch.old_R - batch.sampled_R).exp().clamp(max=CAP)
    is_own = inputs["tool_mask"] * inputs["completion_mask"] == 1
    for name, value_R in numbers.items():
        inputs[name] = torch.zeros(is_own.shape).masked_scatter(is_own, value_R)
    return inputs


def padded_inputs(trajectories: list[Trajectory]) -> dict[str, Tensor]:
    def pad(rows: list[list[int]], side: str) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side=side)

    prompts = [list(one.prompt.ids) for one in trajectories]
    answers = [one.ids for one in trajectories]
    own = [[int(value is not None) for value in one.log_probs] for one in trajectories]
    return {
        "prompt_ids": pad(prompts, "left"),
        "prompt_mask": pad([[1] * len(row) for row in prompts], "left"),
        "completion_ids": pad(answers, "right"),
        "completion_mask": pad([[1] * len(row) for row in answers], "right"),
        "tool_mask": pad(own, "right"),
        "advantages": torch.tensor([one.advantage for one in trajectories]),
        "num_items_in_batch": torch.tensor(sum(map(sum, own))),
    }


def trainer_of(folder: Path, options: dict[str, Any]) -> Any:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder / "trl"), use_cpu=True, report_to=[], bf16=False,
            gradient_checkpointing=False, num_generations=2, per_device_train_batch_size=2,
            gradient_accumulation_steps=1, max_completion_length=NEW_TOKENS,
            # Its divergence is multiplied by the ratio unless told otherwise; ours is k3 alone.
            use_bias_correction_kl=False, **{"num_iterations": 2, "beta": 0.0, **options},
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_the_policy_has_the_loss_and_gradients_of_trl(case: str, tmp_path: Path):
    """In the first update, and in one whose ratios are off 1."""
    ours, theirs = CASES[case]
    stage = stage_of(ours)
    has_sampler = stage.recipe.sampler_cap > 0
    trainer = None
    for has_old in (True,) if has_sampler else (True, False):
        given = give(stage, has_old=has_old, config=CONFIG)
        if trainer is None:
            trainer = trainer_of(save(given.policy, tmp_path / "policy"), theirs)
            # What corrects for the sampler is behind this flag, which vLLM alone sets.
            trainer.use_vllm = has_sampler
        loss = stage.loss(given.policy, given.batch).total / given.batch.count
        trainer.model.zero_grad()
        expected = trainer._compute_loss(trainer.model, inputs_of(given))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        expected.backward()
        assert_gradients_of_hf(given.policy, loss, trainer.model)
