"""Uses a Hugging Face reward model as a reward."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from minimind.errors import ConfigError
from minimind.rewards.rollout import Rollout


def reward_model(
    rollout: Rollout,
    folder: str,
    part: Literal["completion", "answer"] = "completion",
    max_tokens: int | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> float:
    """Gives a Hugging Face sequence-classification model's score (it must have one label) of the
    chat: the prompt's turns and the completion, or with part="answer" the completion without
    thought and calls.

    The model's own chat template renders the chat; without one, it is written as "role: text"
    lines. A chat longer than `max_tokens`, by default the model's context, loses its beginning. A
    process loads the model once and scores one chat at a time on `threads` cores. Code that comes
    with a model is never run. Raises ConfigError.
    """
    if part not in ("completion", "answer"):
        raise ConfigError(f"part={part!r}: it must be 'completion' or 'answer'")
    import torch

    torch.set_num_threads(threads)
    model, tokenizer = _load(folder, device)
    said = rollout.completion if part == "completion" else rollout.answer
    places = [n for n, turn in enumerate(rollout.turns) if turn["role"] == "assistant"]
    before = rollout.turns[: places[-1]] if places else []
    chat = [*rollout.messages, *before, {"role": "assistant", "content": said}]
    ids = _encode(tokenizer, chat)[-(max_tokens or _context(model, tokenizer)) :]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids], device=device)).logits
    return float(logits[0, 0])


@functools.lru_cache(maxsize=4)
def _load(folder: str, device: str) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"a reward model needs transformers ({error}): pip install 'minimind[interop]'"
        ) from None
    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"{folder} is no folder of a Hugging Face model: it has no config.json")
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **options)
        if config.num_labels != 1:
            raise ConfigError(
                f"{folder} is no reward model: it has {config.num_labels} labels where num_labels "
                "is 1 in the config.json of one"
            )
        model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, config=config, output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{folder} cannot be used as a reward model: {error}") from None
    if missing := sorted(report["missing_keys"]):
        raise ConfigError(
            f"{folder} is no reward model: its weights lack {', '.join(missing[:3])}, "
            "which would be random"
        )
    return model.to(device).eval(), tokenizer


def _encode(tokenizer: Any, chat: list[dict[str, Any]]) -> list[int]:
    if not tokenizer.chat_template:
        lines = [f"{turn.get('role')}: {turn.get('content') or ''}" for turn in chat]
        return tokenizer("\n".join(lines))["input_ids"]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _context(model: Any, tokenizer: Any) -> int:
    context = getattr(model.config, "max_position_embeddings", None)
    return min(context or tokenizer.model_max_length, tokenizer.model_max_length)
