"""Evaluates MiniMind models on the tasks of EleutherAI's lm-evaluation-harness, which calls a model
in three ways.

This is the only file that imports `lm_eval`, which is an extra: `pip install 'minimind[eval]'`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-not-found]
from lm_eval.api.instance import Instance  # type: ignore[import-not-found]
from lm_eval.api.model import TemplateLM  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-not-found]
from tqdm import tqdm

from minimind.data.chat_template import render_chat
from minimind.data.tokenizer import Tokenizer
from minimind.errors import ConfigError
from minimind.evaluation.scoring import continuation, score_documents
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.request import GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer

_MAX_NEW_TOKENS = 256
"""The most tokens of an answer where its task names no limit, as in the harness's own models."""
_BATCH = 32

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""(context, continuation) as a pair of texts, then the token ids of each."""


class HarnessModel(TemplateLM):
    """Presents a model to the harness. A text begins as training documents do (bos or eos first);
    with `is_chat` the chat template renders it, and the template's special tokens are recognised. A
    text that is too long loses its beginning, as everywhere in the harness."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, is_chat: bool = False) -> None:
        super().__init__()
        self._model, self._tokenizer, self._is_chat = model, tokenizer, is_chat
        self._context = model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Gives the token put before a text that has no context: bos, or eos where the tokenizer
        has no bos, as the harness's own models do."""
        bos = self._tokenizer.bos_id
        return self._tokenizer.eos_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.fingerprint

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._tokenizer.chat_template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders a conversation. Raises ConfigError where the tokenizer has no template."""
        if self._tokenizer.chat_template is None:
            raise ConfigError(f"the tokenizer {self._tokenizer.origin} has no chat template")
        return render_chat(
            self._tokenizer.chat_template,
            chat_history,
            special_tokens=self._tokenizer.special_tokens,
            add_generation_prompt=add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        if self._is_chat:
            return self._tokenizer.encode_rendered(string)
        if add_special_tokens is False:
            return self._tokenizer.encode(string)
        return self._tokenizer.encode_document(string)

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(before[-max(self._context - len(after), 1) :], after[-self._context + 1 :])
                 for _, before, after in requests]  # fmt: skip
        return self._score(pairs, "" if disable_tqdm else "log-likelihoods")

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts. A text longer than the context is scored in successive windows."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            found = get_rolling_token_windows(ids, self.prefix_token_id, self._context - 1, 1)
            windows += [make_disjoint_window(window) for window in found]
            owners += [owner] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        scores = self._score(windows, "" if disable_tqdm else "log-likelihoods")
        for owner, (log_prob, _) in zip(owners, scores, strict=True):
            totals[owner] += log_prob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = [self._generation(*request.args) for request in requests]
        # Slots of whole contexts would make the cache 13 GB for minimind2.
        longest = max((len(one.prompt_ids) + one.params.max_new_tokens for one in asked), default=1)
        engine = BatchEngine(
            self._model, self._tokenizer, max_batch=_BATCH, max_tokens=_BATCH * longest
        )
        disable = True if disable_tqdm else None
        answers = tqdm(engine.complete(asked), total=len(requests), desc="answers", disable=disable)
        return [answer.text for answer in answers]

    def _generation(self, context: str, wanted: dict[str, Any]) -> GenerationRequest:
        stops = wanted.get("until") or []
        limit = wanted.get("max_gen_toks", _MAX_NEW_TOKENS)
        params = SamplingParams(
            max_new_tokens=min(limit, self._context - 1),
            temperature=wanted.get("temperature", 1.0) if wanted.get("do_sample") else 0.0,
            top_p=wanted.get("top_p", 1.0),
            top_k=wanted.get("top_k", 0),
            stop=tuple([stops] if isinstance(stops, str) else stops),
            seed=0,
        )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return GenerationRequest(
            prompt_ids=ids[params.max_new_tokens - self._context :],
            params=params,
            stop_ids=(self._tokenizer.eos_id, self._tokenizer.pad_id),
        )

    def _score(
        self, pairs: Sequence[tuple[list[int], list[int]]], progress: str
    ) -> list[tuple[float, bool]]:
        samples = [continuation(*pair) for pair in pairs]
        scores = score_documents(
            self._model, samples, pad_id=self._tokenizer.pad_id, progress=progress
        )
        return list(zip(scores.log_probs.tolist(), scores.is_greedy.tolist(), strict=True))


def run_tasks(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    num_examples: int | None = None,
    max_questions: int | None = None,
    is_chat: bool = False,
) -> dict[str, dict[str, Any]]:
    """Gives the harness's measures by task, then by metric and filter ("acc,none"). `folder` holds
    YAML files of the user's own tasks. Raises ConfigError for an unknown task."""
    # Its decorator hides the parameters from type checkers.
    simple_evaluate: Any = lm_eval.simple_evaluate
    found = simple_evaluate(
        model=HarnessModel(model, tokenizer, is_chat=is_chat),
        tasks=list(tasks),
        task_manager=_find_tasks(tasks, folder),
        num_fewshot=num_examples,
        limit=max_questions,
        log_samples=False,
        apply_chat_template=is_chat,
    )
    return found["results"]


def _find_tasks(tasks: Sequence[str], folder: Path | None) -> TaskManager:
    """Finds the tasks by name. The harness needs seconds to list its thousands of tasks, so they
    are listed only where the user's folder lacks one of those asked for."""
    unknown: list[str] = []
    for with_own in (True,) if folder is None else (False, True):
        manager = TaskManager(include_path=folder, include_defaults=with_own)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
        if not unknown:
            return manager
    raise ConfigError(
        f"--tasks {unknown[0]}: the harness has no such task; `lm-eval ls tasks` lists its own, "
        "--task_folder adds to them"
    )
