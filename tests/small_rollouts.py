"""Makes prompts, a small policy that answers them, and answers written by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from small_engines import tokenizer
from small_models import random_model, small_config
from torch import nn

from minimind.data.chat_encoding import ChatEncoder
from minimind.data.prompt_format import Prompt, read_prompt
from minimind.inference.logprobs import TokenLogprob
from minimind.inference.request import Completion, FinishReason, GenerationRequest
from minimind.model.transformer import Transformer
from minimind.rewards.tools import ToolBox
from minimind.stages.rollout_recipe import RolloutRecipe
from minimind.stages.rollouts import RolloutEngine
from minimind.types import Row

QUESTIONS = ("What is 6 plus 9?", "数到五。", "Name a river.", "9 + 9", "Why?")
SAID_LOG_PROB = -0.5
"""The log-probability of every token that was written by hand."""


def build_policy(seed: int = 0, *, ends: float = 1.0, **changes: Any) -> Transformer:
    """Builds a policy that C++ can decode too. The larger `ends`, the more of its answers end
    before the limit."""
    sizes = {"vocab_size": tokenizer().vocab_size, "head_dim": 16, "tie_word_embeddings": False}
    model = random_model(small_config(**{**sizes, **changes}), seed)
    with torch.no_grad():
        model.lm_head.weight[tokenizer().eos_id] *= ends
    return model


def build_prompt(
    unit: int, question: str | None = None, *, thinking: bool = False, **row: Any
) -> Prompt:
    """Builds a prompt from a question, or from `row` with its "conversations"."""
    content = QUESTIONS[unit % len(QUESTIONS)] if question is None else question
    row = {"conversations": [{"role": "user", "content": content}], **row}
    ids = ChatEncoder(tokenizer()).prompt_ids(read_prompt(Row(data=row, path="", line=0)), thinking)
    return Prompt(ids=tuple(ids), unit=unit, row=row, place=0)


def encode(text: str) -> list[int]:
    """Encodes text in which the tags of thinking and tools are tokens, as a policy writes them."""
    (sample,) = ChatEncoder(tokenizer()).encode([[(text, True)]])
    return sample.ids.tolist()


def complete(request: GenerationRequest, text: str, reason: FinishReason = "stop") -> Completion:
    """Gives the completion that the batch engine would give if the policy had written `text`."""
    ids = [*encode(text), *([tokenizer().eos_id] if reason == "stop" else [])]
    made = tuple(TokenLogprob(id=token, logprob=SAID_LOG_PROB, top=()) for token in ids)
    return Completion(
        request_id=0,
        text=text,
        ids=tuple(ids),
        logprobs=made,
        finish_reason=reason,
        prompt_tokens=len(request.prompt_ids),
        cached_tokens=0,
        completion_tokens=len(ids),
    )


Said = str | tuple[str, FinishReason]


class Script:
    """Replaces `BatchEngine.generate`: in each turn it answers every request with a given text."""

    def __init__(self, *turns: Sequence[Said] | Callable[[GenerationRequest], Said]) -> None:
        self._turns = iter(turns)
        self.asked: list[list[GenerationRequest]] = []
        """The requests of each turn."""

    def __call__(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        self.asked.append(list(requests))
        turn = next(self._turns)
        said = [turn(one) for one in requests] if callable(turn) else turn
        found = []
        for request, one in zip(requests, said, strict=True):
            text, reason = (one, "stop") if isinstance(one, str) else one
            found.append(complete(request, text, reason))
        return found


NEW = 24
PROMPTS = [build_prompt(unit) for unit in range(5)]
END = tokenizer().eos_id
ENDS = (END, tokenizer().pad_id)


def rollouts_of(toolbox: ToolBox | None = None, **options: Any) -> RolloutEngine:
    sizes: dict[str, Any] = {"seq_len": 128, "max_new_tokens": NEW}
    recipe = RolloutRecipe(**{**sizes, **options})
    return RolloutEngine(recipe, tokenizer(), toolbox, _itself)


def _itself(module: nn.Module) -> Transformer:
    assert isinstance(module, Transformer)
    return module
