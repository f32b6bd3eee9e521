"""Measures stages that learn from their own answers: counts what a step learned from, trains GRPO
as the original project does, and times rollouts beside the engine that they run in."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from bench import harness
from bench.train.documents import StepData, Steps, packed_step
from bench.train.original import OriginalModel
from bench.train.padded import OriginalRow
from bench.train.specs import RowSpec
from minimind.data.prompt_format import Prompt, PromptBatch, read_prompt
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.load import load_model
from minimind.inference.request import Completion, GenerationRequest
from minimind.lora.folder import find_model_folder
from minimind.model.state_dict import split_fused
from minimind.rewards.scorer import Scorer
from minimind.run.run import Run
from minimind.stages.grpo import GRPORecipe
from minimind.stages.policy_loss import k3
from minimind.stages.rollout_stage import RolloutStage
from minimind.stages.trajectory import Trajectory
from minimind.types import Row

_PAIRS = 4


class Answered(Protocol):
    """Describes the batches that the last step learned from, for a stage that makes them from the
    loader's."""

    def take(self) -> StepData[Any]:
        """Counts the batches of the last step, each as often as the step learned from it."""
        ...


def watch_answers(stage: Any) -> Answered | None:
    """Watches the batches that a stage makes of its answers; gives None for a stage that learns
    from what the loader read."""
    return _Watched(stage) if isinstance(stage, RolloutStage) else None


class _Watched:
    def __init__(self, stage: RolloutStage) -> None:
        self._prepare = stage.prepare
        self._batches: list[Any] = []
        cast(Any, stage).prepare = self._watch

    def _watch(self, *arguments: Any) -> Iterator[list[Any]]:
        self._batches = []
        for batches in self._prepare(*arguments):
            self._batches += batches
            yield batches

    def take(self) -> StepData[Any]:
        return packed_step(self._batches)


class OriginalAnswers(OriginalRow):
    """Trains GRPO as the original project does (trainer/train_grpo.py), in fp32, with the group of
    one prompt at a time. Keys and values grow by concatenation until the group's longest answer
    ends; policy and reference each give whole logits of all tokens; gradients of the groups add up
    to a step. The newest version of the original has one forward more, for old log-probabilities;
    here they are the policy's own."""

    def __init__(self, spec: RowSpec) -> None:
        run = spec.run
        assert isinstance(run.recipe, GRPORecipe)
        assert run.weights_folder is not None, "answers come from weights"
        self.precision, self._recipe = "fp32", run.recipe
        self._device, self._clipping = run.device.torch_device, run.recipe.gradient_clipping
        opened, self.steps = spec.open_run()
        self._tokenizer, self._prompts = opened.tokenizer, self.steps.read(0, spec.steps)
        folder = find_model_folder(Path(run.weights_folder))
        ours, _ = load_model(folder, dtype=torch.float32, device=self._device)
        weights = split_fused(run.config, dict(ours.named_parameters()))
        self._start(spec, self.build_module(run.config, weights, run.seq_len, self._device))
        reference = self.build_module(run.config, weights, run.seq_len, self._device)
        self._reference = reference.requires_grad_(False)
        self._scorer = Scorer(run.recipe.rewards)
        self._generator = torch.Generator(self._device).manual_seed(run.recipe.seed)
        self.answers = self
        self._forget()

    def step(self) -> Tensor:
        self._forget()
        batches = cast(list[PromptBatch], next(self._prompts))
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        total = torch.zeros((), device=self._device)
        for prompt in prompts:
            loss = self._learn(prompt) / len(prompts)
            loss.backward()
            total += loss.detach()
        self._update()
        return total

    def _learn(self, prompt: Prompt) -> Tensor:
        """Gives the mean loss of a prompt's group of answers."""
        recipe, behind = self._recipe, len(prompt.ids)
        ids_GT = self.generate(prompt.ids)
        answers_GR = ids_GT[:, behind:]
        # The token that ends an answer is part of the answer.
        is_stop_GR = answers_GR == self._tokenizer.eos_id
        is_made_GR = is_stop_GR.cumsum(1) - is_stop_GR.long() == 0
        lengths = is_made_GR.sum(1).tolist()
        rewards_G = self._judge(prompt, answers_GR, lengths)
        advantages_G = (rewards_G - rewards_G.mean()) / (rewards_G.std(unbiased=False) + 1e-4)
        log_prob_GR = log_probs(self.module, ids_GT)[:, behind - 1 :]
        with torch.no_grad():
            reference_GR = log_probs(self._reference, ids_GT)[:, behind - 1 :]
        ratio_GR = (log_prob_GR - log_prob_GR.detach()).exp()
        loss_GR = recipe.beta * k3(log_prob_GR, reference_GR) - ratio_GR * advantages_G[:, None]
        self._lengths += [behind + length - 1 for length in lengths]
        self._num_targets += sum(lengths)
        self._num_places += ids_GT.numel()
        return ((loss_GR * is_made_GR).sum(1) / is_made_GR.sum(1)).mean()

    @torch.no_grad()
    def generate(self, prompt_ids: Iterable[int]) -> Tensor:
        """Gives the prompt and its answers [G, T], padded at their ends."""
        recipe, model = self._recipe, cast(OriginalModel, self.module)
        prompt_T = torch.tensor(list(prompt_ids), device=self._device)
        ids_GT = new_GT = prompt_T.expand(recipe.num_generations, -1)
        has_ended_G1 = torch.zeros(len(ids_GT), 1, dtype=torch.bool, device=self._device)
        pasts: list[list[Tensor]] = [[] for _ in model.model.layers]
        for _ in range(recipe.new_tokens):
            probs_GV = (model(new_GT, pasts)[:, -1] / recipe.temperature).softmax(-1)
            drawn_G1 = torch.multinomial(probs_GV, 1, generator=self._generator)
            new_GT = drawn_G1.masked_fill(has_ended_G1, self._tokenizer.pad_id)
            has_ended_G1 = has_ended_G1 | (new_GT == self._tokenizer.eos_id)
            ids_GT = torch.cat((ids_GT, new_GT), dim=1)
            if has_ended_G1.all():
                break
        return ids_GT

    def _judge(self, prompt: Prompt, answers_GR: Tensor, lengths: list[int]) -> Tensor:
        messages = read_prompt(Row(data=prompt.row, path="", line=0)).messages
        answers = []
        for index, (ids, length) in enumerate(zip(answers_GR.tolist(), lengths, strict=True)):
            text = self._tokenizer.decode(ids[:length])
            answers.append(
                Trajectory(
                    prompt=prompt,
                    messages=messages,
                    index=index,
                    ids=ids[:length],
                    log_probs=[0.0] * length,
                    turns=[{"role": "assistant", "content": text}],
                ).to_rollout()
            )
        totals = [score.total or 0.0 for score in self._scorer.score(answers)]
        return torch.tensor(totals, device=self._device)

    def take(self) -> StepData[Any]:
        lengths = np.array(self._lengths)
        return StepData(
            batches=[],
            num_targets=self._num_targets,
            num_tokens=int(lengths.sum()),
            num_places=self._num_places,
            attended=int((lengths * (lengths + 1) // 2).sum()),
        )

    def _forget(self) -> None:
        self._lengths: list[int] = []
        self._num_targets = self._num_places = 0


def log_probs(module: nn.Module, ids_BT: Tensor) -> Tensor:
    """Gives the log-probability of each token but the first [B, T - 1], from whole logits."""
    logits_BTV = module(ids_BT)[:, :-1]
    return logits_BTV.log_softmax(-1).gather(2, ids_BT[:, 1:, None]).squeeze(2)


def compare_rollouts(run: Run, steps: Steps) -> dict[str, Any]:
    """Times a rollout of the first step's prompts beside a batch engine that generates the same
    from the same weights, without log-probabilities and without the work before and after."""
    stage, engine = cast(RolloutStage, run.loop.stage), run.loop.engine
    prompts = [prompt for batch in steps.step(0).batches for prompt in batch.prompts]
    used: list[BatchEngine] = []
    asked: list[GenerationRequest] = []
    generate = BatchEngine.generate

    def watched(self: BatchEngine, requests: Iterable[GenerationRequest]) -> list[Completion]:
        listed = list(requests)
        used.append(self)
        asked.extend(replace(one, params=replace(one.params, logprobs=None)) for one in listed)
        return generate(self, listed)

    def roll_out() -> list[Trajectory]:
        return stage.rollouts.run(engine, prompts, stage.recipe.num_generations, ("bench",))

    with mock.patch.object(BatchEngine, "generate", watched):
        roll_out()
    slots, capacity = used[0].stats.free_slots, used[0].max_sequence
    one_token = replace(asked[0], prompt_ids=asked[0].prompt_ids[:1])
    seconds: dict[str, list[float]] = {"rollout": [], "engine": []}
    with engine.gathered() as module:
        policy = stage.find_policy(module)
        beside = BatchEngine(policy, run.tokenizer, max_batch=slots, max_tokens=slots * capacity)
    for number in range(2 * _PAIRS):
        if number % 4 in (0, 3):
            began = time.perf_counter()
            roll_out()
            seconds["rollout"].append(time.perf_counter() - began)
            continue
        with engine.gathered():
            # The engine has read the weights, and none of the prompts is in its cache.
            beside.refresh()
            beside.generate([one_token])
            began = time.perf_counter()
            beside.generate(asked)
            seconds["engine"].append(time.perf_counter() - began)
    return {"rollout_over_engine": harness.paired_ratio(seconds["engine"], seconds["rollout"])}
