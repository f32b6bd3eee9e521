"""Holds what stages that learn from their own answers share: generating, scoring, laying out
batches, measuring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from minimind.data.formats import Format
from minimind.data.prompt_format import PROMPT, Prompt, PromptBatch
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.engine.stage import BuildContext, Loader, Stage, StageModels
from minimind.errors import ConfigError
from minimind.model.transformer import Transformer
from minimind.rewards.scorer import Scorer
from minimind.rewards.tools import ToolBox
from minimind.runtime.devices import send
from minimind.runtime.together import all_do
from minimind.samples.files import SampleData
from minimind.samples.tasks import PROMPT_DATA
from minimind.stages.policy_loss import rollout_log_probs
from minimind.stages.reference import load_frozen
from minimind.stages.rollout_batch import RolloutBatch, build_rollout_batch
from minimind.stages.rollout_measures import RolloutMeasures
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.rollouts import RolloutEngine
from minimind.stages.trajectory import Trajectory
from minimind.types import LossSum

_SAMPLES = 16
"""The most answers of a step that are kept as samples to read."""


class RolloutStage(Stage[PromptBatch, RolloutBatch]):
    """Runs a step: the policy answers the step's prompts and learns from the answers in one or
    several updates.

    In validation each prompt is answered once, greedily, and the loss is minus the mean reward.
    """

    needs_checkpoint: ClassVar[bool] = True
    may_start_fresh: ClassVar[bool] = False
    data_format: ClassVar[Format] = PROMPT
    sample_data: ClassVar[SampleData] = PROMPT_DATA

    recipe: RolloutRecipe
    rollouts: RolloutEngine
    scorer: Scorer
    measures: RolloutMeasures
    reference: Transformer | None
    """The frozen model that the policy is compared with, in the dtype that the engine computes
    in."""

    def __init__(self, recipe: RolloutRecipe) -> None:
        self.recipe = recipe
        self.scorer = Scorer(
            recipe.rewards,
            num_workers=recipe.reward_workers,
            timeout_s=recipe.reward_timeout_s,
            on_error=cast(Literal["stop", "skip"], recipe.on_reward_error),
        )
        self.measures = RolloutMeasures(self.scorer.reward_names)
        self.reference = None
        self.loader: Loader[PromptBatch] | None = None
        self.set_aside: list[list[Trajectory]] = []
        """Groups of this step's answers that others replaced; they are measured, not learned
        from."""
        self._last: list[Trajectory] = []

    def _make_tools(self) -> ToolBox | None:
        recipe = self.recipe
        if not recipe.tools:
            return None
        return ToolBox(
            recipe.tools, num_workers=recipe.reward_workers, timeout_s=recipe.reward_timeout_s
        )

    def check(self, context: BuildContext) -> None:
        """Raises ConfigError where there are no weights to start from, num_minibatches exceeds the
        answers of a step, or a reward or tool cannot be imported."""
        recipe = self.recipe
        answers = (recipe.train_batch_size or 1) * recipe.num_generations
        if recipe.num_minibatches > answers:
            raise ConfigError(
                f"num_minibatches is {recipe.num_minibatches}, but a step has {answers} answers"
            )
        if context.weights_folder is None:
            raise ConfigError(
                f"--stage {self.name} trains a model that answers already, and --from_checkpoint "
                "none gives none: give a checkpoint (of --stage sft)"
            )
        self.scorer.check()
        if tools := self._make_tools():
            tools.check()
            tools.close()

    def get_ready(self, context: BuildContext) -> None:
        """Makes the RolloutEngine and keeps the loader; `build_models` calls it."""
        assert context.tokenizer is not None
        self.rollouts = RolloutEngine(
            self.recipe, context.tokenizer, self._make_tools(), self.find_policy
        )
        self.loader = context.loader

    def with_reference(self, models: StageModels, context: BuildContext) -> StageModels:
        """Adds the frozen reference, the model that the run starts from, to `models`."""
        assert context.weights_folder is not None
        self.reference = load_frozen(context)
        return replace(models, helpers=(self.reference,))

    def reference_log_probs(self, engine: DeepSpeedEngine, batch: RolloutBatch) -> Tensor | None:
        """Gives the log-probability of each target under the reference; None without one."""
        if self.reference is None:
            return None
        return rollout_log_probs(self.reference, batch, self.recipe.temperature)

    def find_policy(self, module: nn.Module) -> Transformer:
        """Finds the model that generates in the engine's module."""
        return cast(Transformer, module)

    def set_advantages(self, engine: DeepSpeedEngine, groups: Sequence[list[Trajectory]]) -> None:
        """Sets the advantage of each trajectory from its reward. `groups` are this rank's
        trajectories by prompt; one without a reward stays unchanged."""
        raise NotImplementedError

    def look_back(
        self, engine: DeepSpeedEngine, parts: Sequence[Sequence[RolloutBatch]]
    ) -> list[list[RolloutBatch]]:
        """Adds to the micro-batches what the loss needs from before the first update, such as
        log-probabilities. `parts` holds the micro-batches of each update of an epoch."""
        raise NotImplementedError

    def is_kept(self, group: Sequence[Trajectory]) -> bool:
        """Tells whether the stage learns from a group's answers."""
        return True

    def stops_before(self, engine: DeepSpeedEngine, batches: Sequence[RolloutBatch]) -> bool:
        """Tells whether the step ends before its next update, whose micro-batches are `batches`.
        All ranks get the same answer."""
        return False

    def prepare(
        self, engine: DeepSpeedEngine, micro_batches: list[PromptBatch], step: int
    ) -> Iterator[list[RolloutBatch]]:
        """Generates and scores the answers to a step's prompts, and yields the micro-batches of
        each update."""
        recipe, measures = self.recipe, self.measures
        measures.start()
        self.set_aside = []
        by_micro = self.collect(engine, micro_batches, step)
        groups = [group for of_micro in by_micro for group in of_micro]
        kept = [group for group in groups if self.is_kept(group)]
        self.set_advantages(engine, kept)
        self._last = [group[0] for group in groups[:_SAMPLES]]
        measures.add_up(engine, [*groups, *self.set_aside], num_kept=len(kept))
        parts = self._lay_out(engine, by_micro)
        with measures.time("reference"), torch.no_grad():
            engine.train(False)
            parts = self.look_back(engine, parts)
            engine.train()
        for number in range(recipe.inner_epochs * len(parts)):
            batches = parts[number % len(parts)]
            if number and self.stops_before(engine, batches):
                return
            with measures.time("backward"):
                yield batches

    def collect(
        self, engine: DeepSpeedEngine, micro_batches: Sequence[PromptBatch], step: int
    ) -> list[list[list[Trajectory]]]:
        """Gives the scored answers to a step's prompts, by micro-batch and prompt."""
        return self.answer(engine, [list(batch.prompts) for batch in micro_batches], (step,))

    def check_data(self, batches: Iterable[PromptBatch]) -> None:
        """Raises ConfigError where exact_match is a reward but no prompt has a right answer."""
        rewards = [name for name in self.recipe.rewards if name.startswith("exact_match")]
        rows = (prompt.row for batch in batches for prompt in batch.prompts)
        right = (row.get("gt", row.get("answer")) for row in rows)
        if rewards and all(answer in (None, "", []) for answer in right):
            raise ConfigError(
                f"the reward {rewards[0]} compares with the right answer, and the prompts have "
                'neither "gt" nor "answer": add it to the rows, or judge otherwise, as with '
                """--set 'rewards={"length_window": 1.0, "repetition_penalty": 1.0}'"""
            )

    def answer(
        self,
        engine: DeepSpeedEngine,
        prompts: Sequence[Sequence[Prompt]],
        seeded: Sequence[int | str],
    ) -> list[list[list[Trajectory]]]:
        """Generates `num_generations` answers to each prompt and scores them, by micro-batch and
        prompt. `seeded` holds the parts of the seeds besides the prompt's number. All ranks call
        it."""
        size = self.recipe.num_generations
        with self.measures.time("rollout"):
            flat = [prompt for of_micro in prompts for prompt in of_micro]
            trajectories = all_do(lambda: self.rollouts.run(engine, flat, size, seeded))
        with self.measures.time("reward"):
            all_do(lambda: self._judge(trajectories))
        groups = iter([trajectories[at : at + size] for at in range(0, len(trajectories), size)])
        return [[next(groups) for _ in of_micro] for of_micro in prompts]

    def _judge(self, trajectories: Sequence[Trajectory]) -> None:
        recipe = self.recipe
        scores = self.scorer.score([one.to_rollout() for one in trajectories])
        for one, score in zip(trajectories, scores, strict=True):
            one.score = score
            if recipe.overlong_buffer:
                # The penalty grows from 0 where the buffer begins to its full value at the limit.
                over = len(one.ids) - (recipe.new_tokens - recipe.overlong_buffer)
                share = min(max(over / recipe.overlong_buffer, 0.0), 1.0)
                one.penalty = recipe.overlong_penalty * share

    def _teaches(self, trajectory: Trajectory) -> bool:
        is_masked = self.recipe.mask_cut and trajectory.is_cut
        return trajectory.reward is not None and not is_masked

    def _lay_out(
        self, engine: DeepSpeedEngine, by_micro: Sequence[Sequence[list[Trajectory]]]
    ) -> list[list[RolloutBatch]]:
        """Gives the batches by minibatch and micro-batch, without minibatches that have no target
        on any rank. An answer's minibatch depends on its number in the step, not on ranks or
        micro-batches."""
        recipe, device, ranks = self.recipe, engine.device, engine.ranks
        assert recipe.micro_batch_size is not None
        parts: list[list[RolloutBatch]] = [[] for _ in range(recipe.num_minibatches)]
        for micro, groups in enumerate(by_micro):
            first = (micro * ranks.world_size + ranks.rank) * recipe.micro_batch_size
            taught: list[list[Trajectory]] = [[] for _ in parts]
            for place, group in enumerate(groups, start=first):
                for one in group if self.is_kept(group) else ():
                    number = place * recipe.num_generations + one.index
                    if self._teaches(one):
                        taught[number % len(parts)].append(one)
            for mine, batches in zip(taught, parts, strict=True):
                # A forward needs at least one document, even where nothing is to be learned.
                batch = build_rollout_batch(
                    mine or groups[0][:1],
                    teaches=bool(mine),
                    counts_tokens=recipe.loss_mean == "token",
                )
                batch = batch.pin_memory() if device.type == "cuda" else batch
                batches.append(batch.to(device))
        counts = [float(sum(batch.count for batch in batches)) for batches in parts]
        totals = engine.sum_over_ranks(send(counts, device, torch.float64)).tolist()
        return [batches for batches, total in zip(parts, totals, strict=True) if total]

    def evaluate(
        self, engine: DeepSpeedEngine, batches: Iterable[PromptBatch]
    ) -> Iterator[tuple[PromptBatch, LossSum]]:
        """Yields each batch with the sum of minus the rewards of its greedy answers; a reward that
        cannot be computed counts as 0."""
        read = list(batches)
        prompts = [prompt for batch in read for prompt in batch.prompts]
        run = self.rollouts.run
        answers = all_do(lambda: run(engine, prompts, 1, ("validation",), greedy=True))
        all_do(lambda: self._judge(answers))
        rewards = iter([one.reward or 0.0 for one in answers])
        for batch in read:
            total = sum(next(rewards) for _ in batch.prompts)
            yield batch, LossSum(total=torch.tensor(-float(total), device=engine.device))

    def describe_validation(self, val_loss: float) -> str:
        return f"validation reward {0.0 - val_loss:.4f}"

    @property
    def measured_names(self) -> tuple[str, ...]:
        return self.measures.names

    def measured(self) -> Mapping[str, float]:
        return self.measures.finish()

    def samples(self) -> Sequence[Mapping[str, Any]]:
        """Gives the first answer to each of some prompts of the last step, with its reward."""
        return [one.describe() for one in self._last]
