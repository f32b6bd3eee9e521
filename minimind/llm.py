"""Offers a trained model as a Python object: `LLM("runs/chat").chat("你好")`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.chat.session import ChatOptions
from minimind.config.spelling import did_you_mean
from minimind.data.chat_encoding import Message
from minimind.data.chat_format import read_chat
from minimind.data.jsonl import RowProblem
from minimind.data.text_format import check_characters
from minimind.errors import ConfigError
from minimind.inference.answer_parser import AnswerParser, Content, Part
from minimind.inference.batch_engine import BatchEngine
from minimind.inference.chat_prompt import chat_prompt
from minimind.inference.grammar_texts import FORMS, AnswerForm, take_form
from minimind.inference.load import (
    chat_notice,
    choose_placement,
    load_adapters,
    load_checkpoint,
)
from minimind.inference.request import Delta, GenerationRequest
from minimind.inference.sampling import SamplingParams
from minimind.lora.folder import find_model_folder

logger = logging.getLogger(__name__)

SAMPLING = tuple(f.name for f in dataclasses.fields(SamplingParams) if "logprobs" not in f.name)
"""The options of each call; SamplingParams explains them. Log-probabilities are left out, because
the methods return text alone."""


class LLM:
    """Chats, completes and streams with one model, through the batch engine.

    ```python
    llm = LLM("runs/chat")
    print(llm.chat("你好"))
    print(llm.generate(["The river of Lumor", "1 + 1 ="], max_new_tokens=20))
    for piece in llm.stream("Tell me a story", temperature=0.7, seed=1):
        print(piece, end="", flush=True)
    print(llm.chat("Who is Greta?", json_schema=Person.model_json_schema()))
    ```

    Calls from several threads, and streams that are read alternately, are computed in one batch.
    The text does not depend on that.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        max_batch: int = 16,
        max_tokens: int | None = 1 << 16,
    ) -> None:
        """Loads a model from `checkpoint`: a run's folder, one checkpoint in it, a Hugging Face
        folder, or an adapter's folder, whose adapter is then merged. `device` is PyTorch's name, by
        default the GPU if there is one; `dtype` is fp32, bf16 or fp16, by default bf16 if the
        device has it. `adapters` maps names, which calls give as `adapter=`, to folders.
        `max_batch` sequences are decoded together, with a cache of `max_tokens` tokens in all
        (None: a whole context for each). Raises a MiniMindError for anything that cannot be
        used."""
        folder = find_model_folder(Path(checkpoint))
        placement = choose_placement(device, dtype or "auto")
        model, self.tokenizer = load_checkpoint(folder, placement)
        folders = {name: find_model_folder(Path(path)) for name, path in (adapters or {}).items()}
        loaded = load_adapters(model, self.tokenizer, folder, folders)
        self._engine = BatchEngine(
            model, self.tokenizer, max_batch=max_batch, max_tokens=max_tokens, adapters=loaded
        )
        self._notice = chat_notice(Path(checkpoint))
        """The warning to log before the first answer; None where there is none."""
        self._lock = threading.Lock()
        """Held by the thread that steps the engine."""
        self._inboxes: dict[int, deque[Delta]] = {}
        """The queue for each open request's output; the requests of one call share a queue."""

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        thinking: bool = False,
        adapter: str | None = None,
        **sampling: Any,
    ) -> str:
        """Answers a user's text, or a conversation of `{"role": …, "content": …}` turns.

        With `thinking` the model thinks first; the thought is not part of the answer. `sampling`
        are fields of SamplingParams: greedy unless `temperature` is given, and at most 512 tokens
        unless `max_new_tokens` is. One of `json_schema`, `regex`, `choice` (a list of texts) and
        `grammar` (Lark or GBNF) constrains the form of the answer, unless it reaches its most
        tokens first. Raises ConfigError for an unknown option, a form that cannot be enforced,
        turns that are not a conversation, and a conversation that is too long; DataError for a
        model without a chat template. Warns once where the model was trained on text alone.
        """
        parts = self.stream(messages, thinking=thinking, adapter=adapter, **sampling)
        return "".join(parts)

    def stream(
        self,
        messages: str | Sequence[Message],
        *,
        thinking: bool = False,
        adapter: str | None = None,
        **sampling: Any,
    ) -> Generator[str, None, None]:
        """Yields the answer of `chat` in pieces. Closing the iterator stops the generation. Bad
        arguments raise at this call, not at the first piece."""
        if isinstance(messages, Mapping) or not isinstance(messages, str | Sequence):
            raise ConfigError(
                f"the conversation is {messages!r}; it must be a text or a list of turns, such as "
                '[{"role": "user", "content": "…"}]'
            )
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        try:
            chat = read_chat(list(turns), "the conversation", needs_answer=False)
        except RowProblem as problem:
            raise ConfigError(str(problem)) from None
        if self._notice:
            logger.warning("%s", self._notice)
            self._notice = None
        prompt = chat_prompt(self.tokenizer, chat, thinking)
        new_tokens = ChatOptions().max_new_tokens
        thinks = prompt.in_reasoning
        request = self._request(
            "the conversation", prompt.ids, new_tokens, adapter, sampling, after_thinking=thinks
        )
        return self._answer(request, in_reasoning=thinks)

    def generate(
        self, prompts: str | Sequence[str], *, adapter: str | None = None, **sampling: Any
    ) -> list[str]:
        """Continues each prompt as the beginning of a document, and gives the texts without the
        prompts. All prompts are decoded together. `sampling` is as in `chat`. Raises ConfigError
        before anything is generated."""
        if not isinstance(prompts, str | Sequence):
            raise ConfigError(f"prompts is {prompts!r}; it must be a text or a list of texts")
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        new_tokens = SamplingParams().max_new_tokens
        requests = []
        for number, prompt in enumerate(prompts, start=1):
            what = f"prompt {number}"
            if not isinstance(prompt, str):
                raise ConfigError(f"{what} is {prompt!r}; it must be a string")
            try:
                check_characters(prompt, what)
            except RowProblem as problem:
                raise ConfigError(str(problem)) from None
            ids = self.tokenizer.encode_document(prompt)
            requests.append(self._request(what, ids, new_tokens, adapter, sampling))
        texts = [""] * len(requests)
        for index, delta in self._run(requests):
            texts[index] += delta.text
        return texts

    def _request(
        self,
        what: str,
        prompt_ids: list[int],
        new_tokens: int,
        adapter: str | None,
        sampling: Mapping[str, Any],
        *,
        after_thinking: bool = False,
    ) -> GenerationRequest:
        """Builds a request. `new_tokens` limits its tokens, or fewer if there is less room, where
        `sampling` gives no limit."""
        room = self._engine.max_sequence - len(prompt_ids)
        if room < 1:
            raise ConfigError(
                f"{what} has {len(prompt_ids)} tokens, which leaves no room for an answer in the "
                f"{self._engine.max_sequence} of a sequence here: shorten it, or load the model "
                "with a smaller max_batch or a larger max_tokens if its context is longer"
            )
        options = {"max_new_tokens": min(new_tokens, room), **sampling}
        content = take_form(options)
        if content is not None:
            form = AnswerForm(content=content, after_thinking=after_thinking)
            options["grammar"] = self._engine.grammars.compile(form.text(self.tokenizer))
        request = GenerationRequest(
            prompt_ids=prompt_ids,
            params=_read_sampling(options),
            stop_ids=(self.tokenizer.eos_id, self.tokenizer.pad_id),
            adapter=adapter,
        )
        self._engine.check(request)
        return request

    def _answer(
        self, request: GenerationRequest, *, in_reasoning: bool
    ) -> Generator[str, None, None]:
        parser = AnswerParser(in_reasoning=in_reasoning, with_tools=False)
        with contextlib.closing(self._run([request])) as deltas:
            for _, delta in deltas:
                yield from _contents(parser.push(delta.text))
        yield from _contents(parser.flush())

    def _run(
        self, requests: Sequence[GenerationRequest]
    ) -> Generator[tuple[int, Delta], None, None]:
        """Yields (index of a request, its output of one step) until all have ended. Closing the
        iterator cancels the rest."""
        inbox: deque[Delta] = deque()
        open_requests: dict[int, int] = {}
        try:
            with self._lock:
                for index, request in enumerate(requests):
                    request_id = self._engine.submit(request)
                    open_requests[request_id] = index
                    self._inboxes[request_id] = inbox
            while open_requests:
                with self._lock:
                    while not inbox:
                        self._step()
                    delta = inbox.popleft()
                index = open_requests[delta.request_id]
                if delta.finish_reason is not None:
                    del open_requests[delta.request_id], self._inboxes[delta.request_id]
                if delta.finish_reason == "error":
                    raise RuntimeError("the generation failed; the log says why")
                yield index, delta
        finally:
            for request_id in open_requests:
                self._inboxes.pop(request_id, None)
                self._engine.cancel(request_id)
            # An abandoned iterator may be closed anywhere, even during another call's step, when
            # this must not begin a second one; the next step then frees the slots.
            if open_requests and self._lock.acquire(blocking=False):
                try:
                    self._step()
                finally:
                    self._lock.release()

    def _step(self) -> None:
        for delta in self._engine.step():
            if (inbox := self._inboxes.get(delta.request_id)) is not None:
                inbox.append(delta)


def _contents(parts: Iterable[Part]) -> Iterator[str]:
    return (part.text for part in parts if isinstance(part, Content))


def _read_sampling(given: Mapping[str, Any]) -> SamplingParams:
    """Checks the options and builds SamplingParams. Raises ConfigError."""
    known = sorted({*SAMPLING, *FORMS})
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{name} is no sampling option{did_you_mean(name, known)}; they are "
                f"{', '.join(known)}"
            )
    stop = given.get("stop", ())
    if isinstance(stop, Sequence) and not all(isinstance(text, str) for text in stop):
        raise ConfigError(f"stop is {stop!r}; it must be a text or a list of texts")
    try:
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        bias = tuple(dict(given.get("logit_bias") or {}).items())
        return SamplingParams(**{**given, "stop": stop, "logit_bias": bias})
    except TypeError as error:
        raise ConfigError(f"an option of {dict(given)} has a wrong type: {error}") from None
