"""What a step's answers become: minibatches, updates, prompts that make way for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from labelled_answers import TOKENIZER, PolicyEngine, engine_of, save
from made_rollouts import CONFIG, made, made_rollouts, move
from small_models import pack, random_model
from torch import nn

from minimind.data.prompt_format import Prompt, PromptBatch
from minimind.engine.stage import BuildContext
from minimind.errors import ConfigError
from minimind.lora.model import adapters_off, add_adapters
from minimind.model.state_dict import linear_parts
from minimind.runtime.ranks import Ranks
from minimind.stages.grpo import GRPO, GRPORecipe
from minimind.stages.ppo import PPO, PPORecipe
from minimind.stages.rollout_batch import RolloutBatch
from minimind.stages.rollout_measures import RolloutMeasures
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.trajectory import Trajectory

Groups = list[list[Trajectory]]


def groups_of(num_prompts: int, size: int, rewards: Sequence[float]) -> Groups:
    """Answers to prompts, each told from all others by its one token."""
    return [
        [
            made([1, 2], [unit * size + index], [-1.0], reward=reward, unit=unit, index=index)
            for index, reward in zip(range(size), rewards, strict=True)
        ]
        for unit in range(num_prompts)
    ]


def with_answers(stage: RolloutStage, by_micro: Sequence[Groups]) -> None:
    """Gives the stage these answers in place of a policy's."""
    stage.measures = RolloutMeasures([])
    cast(Any, stage).collect = lambda *_: by_micro
    cast(Any, stage).look_back = lambda engine, parts: parts


def tokens_of(batches: Sequence[RolloutBatch]) -> list[int]:
    return sorted(token for batch in batches for token in batch.targets_R.tolist())


def updates(stage: RolloutStage, num_micro: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Gives the tokens that each update of a step learns from, on one rank."""
    engine = cast(Any, PolicyEngine(Ranks(rank, rank, world), module=nn.Linear(1, 1)))
    prepared = stage.prepare(engine, [cast(Any, None)] * num_micro, 0)
    return [tokens_of(batches) for batches in prepared]


@pytest.mark.parametrize("num_minibatches", [1, 2, 3, 5])
def test_an_answers_minibatch_does_not_depend_on_micro_batches_or_ranks(num_minibatches: int):
    groups, found = groups_of(4, 3, (0.0, 1.0, 0.5)), []
    for size in (1, 2, 4):
        stage = GRPO(
            GRPORecipe(
                num_generations=3, num_minibatches=num_minibatches, micro_batch_size=size, seq_len=8
            )
        )
        with_answers(stage, [groups[at : at + size] for at in range(0, 4, size)])
        found.append(updates(stage, 4 // size))
    assert found[0] == found[1] == found[2]
    assert sorted(token for update in found[0] for token in update) == list(range(12))
    sizes = [len(update) for update in found[0]]
    assert max(sizes) - min(sizes) <= 1
    if num_minibatches > 3:
        return  # one of them would have no answer of a rank, and this engine does not add ranks up
    of_ranks = []
    for rank in (0, 1):
        stage = GRPO(
            GRPORecipe(
                num_generations=3, num_minibatches=num_minibatches, micro_batch_size=1, seq_len=8
            )
        )
        with_answers(stage, [[groups[rank]], [groups[rank + 2]]])
        of_ranks.append(updates(stage, 2, rank, world=2))
    assert [sorted(a + b) for a, b in zip(*of_ranks, strict=True)] == found[0]


def test_a_step_with_nothing_to_learn_takes_no_update():
    for options in ({"dynamic_sampling": 1}, {"mask_cut": True}):
        stage = GRPO(
            GRPORecipe(num_generations=2, micro_batch_size=2, seq_len=8, beta=0.0, **options)
        )
        groups = groups_of(2, 2, (1.0, 1.0))
        for one in (one for group in groups for one in group):
            one.is_cut = True
        with_answers(stage, [groups])
        assert updates(stage, 1) == []
        assert stage.measures.mean_reward == 1.0


def test_more_minibatches_than_answers_are_refused(tmp_path: Path):
    recipe = GRPORecipe(num_generations=2, num_minibatches=5, train_batch_size=2, seq_len=8)
    with pytest.raises(ConfigError, match="num_minibatches is 5, but a step has 4 answers"):
        GRPO(recipe).check(BuildContext(config=CONFIG, weights_folder=tmp_path))


def test_ppo_measures_the_policy_before_it_goes_on(tmp_path: Path):
    model = random_model(CONFIG, seed=1)
    context = BuildContext(
        config=CONFIG,
        weights=dict(model.named_parameters()),
        weights_folder=save(model, tmp_path),
        tokenizer=TOKENIZER,
    )
    for limit, wanted in ((0.01, 1), (0.0, 2)):
        stage = PPO(PPORecipe(seq_len=32, micro_batch_size=5, kl_stop=limit))
        module = stage.build_models(context).policy
        stage.measures = RolloutMeasures([])
        cast(Any, stage).collect = lambda *_: [[[one] for one in made_rollouts()]]
        taken = 0
        for _ in stage.prepare(engine_of(module), [cast(Any, None)], 0):
            taken += 1
            move(module, module, 0.1, seed=3)
        assert taken == wanted, limit


def prompt_batch(units: Sequence[int]) -> PromptBatch:
    prompts = tuple(
        Prompt(ids=(1, 2), unit=unit, row={"gt": 1}, place=place)
        for place, unit in enumerate(units)
    )
    return cast(PromptBatch, type("Batch", (), {"prompts": prompts})())


class Loader:
    """Reads the same six prompts in an order of its own each time."""

    def batches(self, step: int) -> list[PromptBatch]:
        units = [(step * 2 + place) % 6 for place in range(4)]
        return [prompt_batch(units[:2]), prompt_batch(units[2:])]

    def steps(self, epochs: float) -> int:
        return 6


def test_prompts_without_spread_make_way_for_others():
    stage = GRPO(
        GRPORecipe(num_generations=2, micro_batch_size=2, seq_len=8, dynamic_sampling=8, beta=0.0)
    )
    stage.loader = cast(Any, Loader())
    asked: list[list[int]] = []

    def answer(engine: Any, prompts: Sequence[Sequence[Prompt]], seeded: Any) -> list[Groups]:
        asked.append([prompt.unit for of_micro in prompts for prompt in of_micro])
        return [[judged(prompt) for prompt in of_micro] for of_micro in prompts]

    def judged(prompt: Prompt) -> list[Trajectory]:
        """The answers to odd prompts differ."""
        rewards = (0.0, 1.0) if prompt.unit % 2 else (1.0, 1.0)
        return [
            replace(made([1, 2], [index], [-1.0], reward=reward, index=index), prompt=prompt)
            for index, reward in enumerate(rewards)
        ]

    cast(Any, stage).answer = answer
    engine = engine_of(nn.Linear(1, 1))
    by_micro = stage.collect(engine, Loader().batches(0), 0)
    units = [group[0].prompt.unit for groups in by_micro for group in groups]
    assert asked[0] == [0, 1, 2, 3]
    assert len(set(units)) == 4, "no prompt comes twice"
    assert {1, 3} <= set(units)
    assert 5 in units, "the one that has spread took the place of one that has none"
    later = [unit for of_round in asked[1:] for unit in of_round]
    assert not set(later) & {0, 1, 2, 3}, "those of the step are not asked again"
    assert len(later) == len(set(later)), "nor is one that was set aside"
    assert [len(groups) for groups in by_micro] == [2, 2]


def test_exact_match_needs_right_answers():
    stage = GRPO(GRPORecipe(num_generations=2, micro_batch_size=2, seq_len=8))
    batch = prompt_batch([0, 1])
    for prompt in batch.prompts:
        prompt.row["gt"] = None
    with pytest.raises(ConfigError, match='the prompts have neither "gt" nor "answer"'):
        stage.check_data([batch])
    batch.prompts[1].row["gt"] = 0
    stage.check_data([batch])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rewards": {"exact_match": 0.0, "length_window": 0.0}}, "every weight is 0"),
        ({"top_k": 1}, "all answers to a prompt would be the same"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"num_generations": 1}, "at least 2 are needed"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
    ],
)
def test_options_with_which_nothing_is_learned(options: dict[str, Any], words: str):
    GRPORecipe(learning_rate=1.0, seq_len=8).check()
    with pytest.raises(ConfigError, match=words):
        GRPORecipe(**{"learning_rate": 1.0, "seq_len": 8, **options}).check()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_without_its_adapters_a_model_is_its_base(family: str):
    config = replace(CONFIG, model_type=family)
    base, adapted = random_model(config, seed=1), random_model(config, seed=1)
    names = [part.name for parts in linear_parts(config).values() for part in parts]
    add_adapters(adapted, dict.fromkeys(names, 2), dict.fromkeys(names, 4.0), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.arange(6)[None]

    def states(model: Any) -> torch.Tensor:
        return model(pack([[ids[0].tolist()]]), head=lambda hidden, _: hidden).per_token

    with adapters_off(adapted):
        torch.testing.assert_close(states(adapted), states(base), rtol=0, atol=0)
    assert not torch.equal(states(adapted), states(base))


def test_adapters_have_options_and_a_rate_of_their_own():
    whole, adapters = GRPORecipe(), GRPORecipe(lora_preset="all")
    assert adapters.usual_rates[""] == pytest.approx(10 * whole.usual_rates[""])
    for options in ({"lora_ranks": {"mlp": 2}}, {"lora_alphas": {"mlp": 2.0}}, {"lora_plot": True}):
        with pytest.raises(ConfigError, match="give --set lora_preset=all too"):
            GRPORecipe(**cast(Any, options)).check()


def test_validation_is_told_as_a_reward():
    stage = GRPO(GRPORecipe(num_generations=2, seq_len=8))
    assert stage.describe_validation(-0.25) == "validation reward 0.2500"
