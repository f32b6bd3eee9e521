"""Generates answers to prompts with the batch engine and the policy's current weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from minimind.data.chat_encoding import ChatEncoder
from minimind.data.prompt_format import Prompt, read_prompt
from minimind.data.tokenizer import Tokenizer
from minimind.engine.deepspeed_engine import DeepSpeedEngine
from minimind.errors import TrainingError
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import Completion, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.rewards.tools import ToolBox
from minimind.runtime.seeds import derive_seed
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.trajectory import Trajectory
from minimind.types import Row

_SHOWN = 200


class RolloutEngine:
    """Generates several answers to each prompt, over several turns where the policy calls tools.

    An answer depends only on the policy, the prompt and a seed made from (run, step, prompt,
    answer, turn), not on the other answers in the batch or the number of ranks. In 16 bits this
    holds up to rounding: a prompt found in the cache is computed differently from a new one.
    """

    def __init__(
        self,
        recipe: RolloutRecipe,
        tokenizer: Tokenizer,
        tools: ToolBox | None,
        find_policy: Callable[[nn.Module], Transformer],
    ) -> None:
        """`find_policy` finds the model that generates in the engine's module."""
        assert recipe.seq_len is not None
        self._recipe, self._tokenizer, self._tools = recipe, tokenizer, tools
        self._seq_len, self._find_policy = recipe.seq_len, find_policy
        self._encoder = ChatEncoder(tokenizer)
        self._batch_engine: BatchEngine | None = None
        self._together = 1

    def run(
        self,
        engine: DeepSpeedEngine,
        prompts: Sequence[Prompt],
        num_answers: int,
        seeded: Sequence[int | str],
        *,
        greedy: bool = False,
    ) -> list[Trajectory]:
        """Gives the answers; those to one prompt are adjacent. `seeded` holds the parts of the
        seeds besides the prompt's number. All ranks call it, each with its own prompts. Raises
        TrainingError where the policy's logits are not finite, or its forward failed."""
        trajectories = [one for prompt in prompts for one in self._open(prompt, num_answers)]
        with engine.gathered() as module:
            batch_engine = self._refresh(self._find_policy(module))
            going = trajectories
            for turn in range(self._recipe.max_turns):
                if not going:
                    break
                ordered = self._order(going)
                requests = [self._request(one, (*seeded, turn), greedy) for one in ordered]
                completions = batch_engine.generate(requests)
                is_last = turn + 1 == self._recipe.max_turns
                going = self._take_in(ordered, completions, is_last)
        return trajectories

    def _order(self, going: Sequence[Trajectory]) -> list[Trajectory]:
        """Orders the answers so that the first answer to each prompt comes first and fills the
        cache for the others; done for as many prompts at a time as the cache has slots."""
        places = {unit: at for at, unit in enumerate(dict.fromkeys(o.prompt.unit for o in going))}
        together = self._together
        return sorted(going, key=lambda o: (places[o.prompt.unit] // together, o.index))

    def _open(self, prompt: Prompt, num_answers: int) -> list[Trajectory]:
        chat = read_prompt(Row(data=prompt.row, path="", line=0))
        messages, opens = _with_tools(chat.messages, chat.tools), self._recipe.thinking
        return [
            Trajectory(prompt=prompt, messages=messages, index=index, opens_thinking=opens)
            for index in range(num_answers)
        ]

    def _refresh(self, policy: Transformer) -> BatchEngine:
        if self._batch_engine is None:
            self._together = self._recipe.num_slots(policy.lm_head.weight.device.type)
            self._batch_engine = BatchEngine(
                policy,
                self._tokenizer,
                max_batch=self._together,
                max_tokens=self._together * self._seq_len,
            )
        else:
            self._batch_engine.refresh()
        return self._batch_engine

    def _request(
        self, trajectory: Trajectory, seeded: Sequence[int | str], greedy: bool
    ) -> GenerationRequest:
        recipe, prompt = self._recipe, trajectory.prompt
        return GenerationRequest(
            prompt_ids=[*prompt.ids, *trajectory.ids],
            params=SamplingParams(
                max_new_tokens=recipe.new_tokens - len(trajectory.ids),
                temperature=0.0 if greedy else recipe.temperature,
                top_k=recipe.top_k,
                top_p=recipe.top_p,
                logprobs=0,
                tempered_logprobs=True,
                seed=derive_seed(recipe.seed, *seeded, prompt.unit, trajectory.index),
            ),
            stop_ids=(self._tokenizer.eos_id, self._tokenizer.pad_id),
            gives_stop=True,
        )

    def _take_in(
        self, ordered: Sequence[Trajectory], completions: Sequence[Completion], is_last: bool
    ) -> list[Trajectory]:
        """Adds a generated turn, and the results of its tool calls, to each trajectory. Gives the
        trajectories that go on."""
        calls = []
        for trajectory, completion in zip(ordered, completions, strict=True):
            if completion.finish_reason == "error":
                text = self._tokenizer.decode(trajectory.prompt.ids)[-_SHOWN:]
                raise TrainingError(
                    f"the policy cannot answer the prompt that ends in {text!r}: its logits are "
                    "not finite, for which a lower --learning_rate may help, or there is no memory "
                    "for so many answers at once, as the log then says, for which a smaller "
                    "rollout_batch may. The last checkpoint is as it was"
                )
            found = trajectory.add_turn(completion)
            if found and self._tools is not None and not trajectory.is_cut:
                trajectory.is_cut = is_last  # its tools are not called any more
                calls += [] if is_last else [(trajectory, found)]
        if not calls or self._tools is None:
            return []
        results = iter(self._tools.call([call for _, found in calls for call in found]))
        going = []
        for trajectory, found in calls:
            texts = [next(results) for _ in found]
            ids = self._encoder.result_ids(texts, self._recipe.thinking)
            if len(trajectory.ids) + len(ids) < self._recipe.new_tokens:
                trajectory.add_results(texts, ids)
                going.append(trajectory)
            else:
                trajectory.is_cut = True
        return going


def _with_tools(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """Puts the tools that a row names back into its system turn, as "tools", which rewards read."""
    if not tools:
        return messages
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return [{**messages[0], "tools": tools}, *messages[1:]]
