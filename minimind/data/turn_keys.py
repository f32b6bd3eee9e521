"""Lists the keys that turns, tool calls and content parts may have: those that are used, and those
that are refused, with advice."""

from __future__ import annotations

import re
from functools import lru_cache

from minimind.data.row_keys import KeyTable, Refusal, is_number_like, is_prose

OWN_ROLES = ("system", "user", "assistant", "tool")
"""The project's roles."""
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "chatbot": "assistant", "ai": "assistant", "bing": "assistant",
    "bard": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
"""The project's role for each role of other projects, in upper or lower case. The text of a
`function_call` or `tool_call` turn is the call."""
REASONING = ("reasoning_content", "reasoning", "thinking", "think", "thought", "thoughts", "cot",
             "chain_of_thought")  # fmt: skip
WEIGHTS = ("weight", "loss", "train", "training", "loss_weight", "loss_scale", "train_on_turn",
           "train_on", "trainable", "is_trained", "is_train", "is_target", "learn",
           "supervised")  # fmt: skip
UNLEARNED = ("no_loss", "ignore", "ignore_loss")
_WRITE_WEIGHT = (
    'write "weight": 0 for a turn that is not to be learned, "weight": 1 for one that is'
)
_NO_MEDIA = Refusal("the models read text alone: leave the row out, or write what it shows as text")
_MASK = Refusal(f"means the opposite in different projects: {_WRITE_WEIGHT}")
_DETAIL = Refusal(f"parts of a turn cannot be chosen: {_WRITE_WEIGHT}")
LEARNING = Refusal(f"seems to say what is learned, and is not known: {_WRITE_WEIGHT}",
                   applies=lambda value, rest: is_number_like(value))  # fmt: skip
_BESIDE = Refusal('text beside the content would not be learned from: write it into "content"',
                  applies=lambda value, rest: is_prose(value))  # fmt: skip
_REASON = Refusal('if it is the assistant\'s reasoning, call it "reasoning_content", else leave it '
                  "out", applies=lambda value, rest: is_prose(value))  # fmt: skip
_ARGS = Refusal('write what the function is called with as "arguments"')

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
LEARNING_WORDS = (
    "train", "trained", "trainable", "training", "untrained", "loss", "learn", "learned",
    "learnable", "mask", "masked", "supervise", "supervised", "supervision", "weight", "weights",
    "target", "ignore", "ignored", "label", "labels",
)  # fmt: skip


@lru_cache(maxsize=4096)
def _suspect(key: str) -> Refusal | None:
    """Refuses a key such as loss_mask or lossMask, one of whose words is about learning."""
    words = [word.lower() for word in _WORD.findall(key)]
    return LEARNING if any(word in LEARNING_WORDS for word in words) else None


TURNS = KeyTable(
    of=" of turns",
    used={
        "role": "who speaks: " + ", ".join(ROLES),
        "content": 'text, or parts `{"type": "text", "text": …}`, which are joined',
        **dict.fromkeys(REASONING, "the assistant's reasoning"),
        "tools": "the functions that can be called; JSON or a string of JSON",
        "tool_calls": "the calls; JSON or a string of JSON",
        "function_call": "one call, as in OpenAI's first form",
        **dict.fromkeys(WEIGHTS, "0 or false: the assistant's turn is no target"),
        **dict.fromkeys(UNLEARNED, "1 or true: the assistant's turn is no target"),
    },
    refused={
        **dict.fromkeys(
            ("image", "images", "image_url", "audio", "audios", "video", "videos"), _NO_MEDIA
        ),
        **dict.fromkeys(("mask", "loss_mask", "masked", "is_masked"), _MASK),
        **dict.fromkeys(("train_detail", "training_detail"), _DETAIL),
        **dict.fromkeys(("context", "document", "documents", "instruction", "input"), _BESIDE),
        **dict.fromkeys(("reason", "rationale", "analysis"), _REASON),
        "functions": Refusal('write the functions that can be called as "tools"'),
        "channel": Refusal('write the thought as "reasoning_content" of the turn with the '
                           "answer", applies=lambda value, rest: value != "final"),
        "refusal": Refusal('write the text of a refusal as "content"'),
        "reasoning_details": Refusal('write the reasoning as text, under "reasoning_content"'),
        **dict.fromkeys(
            ("from", "value"), Refusal("is of ShareGPT's form, and the turn has OpenAI's keys too")
        ),
    },
    suspect=_suspect,
)  # fmt: skip
SHAREGPT_TURNS = KeyTable(
    of=" of turns",
    used={"from": TURNS.used["role"], "value": TURNS.used["content"]}
    | {key: what for key, what in TURNS.used.items() if key not in ("role", "content")},
    refused={key: why for key, why in TURNS.refused.items() if key not in ("from", "value")}
    | dict.fromkeys(
        ("role", "content"), Refusal("is of OpenAI's form, and the turn has ShareGPT's keys too")
    ),
    suspect=_suspect,
)
_CALL_USED = {"name": "the function's", "arguments": "an object, or a string of JSON",
              "parameters": "the same under another name"}  # fmt: skip
_CALL_REFUSED: dict[str, Refusal] = dict.fromkeys(("args", "kwargs", "input", "params"), _ARGS)
CALLS = KeyTable(" of tool calls", {**_CALL_USED, "type": "function", "function": "a call"},
                 _CALL_REFUSED)  # fmt: skip
FUNCTIONS = KeyTable(" of tool calls", _CALL_USED, _CALL_REFUSED)
PARTS = KeyTable(
    of=" of content parts", used={"type": "text", "text": "the text", "thinking": "reasoning"}
)
