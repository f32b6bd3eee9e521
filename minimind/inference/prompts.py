"""Generates sample texts during training, so that a reader can watch the model learn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from minimind.data.chat_encoding import Chat, ChatEncoder
from minimind.data.rows import open_rows
from minimind.data.tokenizer import Tokenizer
from minimind.inference.generate import generate_text, stream_text
from minimind.inference.sampling import SamplingParams
from minimind.model.transformer import Transformer
from minimind.samples.chat import SAMPLE_QUESTIONS
from minimind.samples.text import SAMPLE_PROMPTS
from minimind.types import Row

_DOCUMENTS = 4
_CHARACTERS = 24
_TURN_KEYS = ("conversations", "chosen")


def choose_prompts(
    given: Sequence[str],
    paths: Sequence[str],
    *,
    is_chat: bool,
    kind: str = "",
    format_name: str | None = None,
) -> list[str]:
    """Gives the prompts that are `given`, else the beginnings of the first data file's first
    documents (of conversations: the first short questions), else the sample data's prompts. `kind`
    is the name of the data format; `format_name` the form of its rows, if the user named it."""
    if given or not paths:
        samples = SAMPLE_QUESTIONS if is_chat else SAMPLE_PROMPTS
        return list(given) or [sample.prompt for sample in samples]
    reader = open_rows(paths[0], (kind or ("chat" if is_chat else "text"),), format_name)
    rows = (row for row, _ in reader if isinstance(row, Row))
    texts = _questions(rows) if is_chat else (str(row.data.get("text", "")) for row in rows)
    texts = itertools.islice(texts, _DOCUMENTS)
    return list(texts) if is_chat else [text[:_CHARACTERS] for text in texts]


def _questions(rows: Iterator[Row]) -> Iterator[str]:
    for row in rows:
        turns = next((row.data[key] for key in _TURN_KEYS if key in row.data), None)
        for turn in turns if isinstance(turns, list) else []:
            if isinstance(turn, dict) and turn.get("role") == "user":
                question = turn.get("content")
                if isinstance(question, str) and 0 < len(question) <= 3 * _CHARACTERS:
                    yield question
                break


def answer_prompts(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    params: SamplingParams,
    *,
    is_chat: bool,
) -> list[str]:
    """Gives the continuation of each prompt, or with `is_chat` the answer to it as a user's only
    turn."""
    if not is_chat:
        texts = [generate_text(model, tokenizer, prompt, params) for prompt in prompts]
    else:
        encoder = ChatEncoder(tokenizer)
        chats = [Chat([{"role": "user", "content": prompt}]) for prompt in prompts]
        texts = [
            "".join(stream_text(model, tokenizer, encoder.prompt_ids(chat), params))
            for chat in chats
        ]
    return [text.strip() for text in texts]


def answer_lines(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], *, is_chat: bool
) -> list[str]:
    """Gives each prompt followed by an arrow and its greedy continuation of at most 40 tokens.
    Without `is_chat` the continuation ends with its first line."""
    params = SamplingParams(max_new_tokens=40, stop=() if is_chat else ("\n",))
    answers = answer_prompts(model, tokenizer, prompts, params, is_chat=is_chat)
    return [f"{prompt} → {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
