"""Lists the refused keys: values beside a conversation that change what is learned from it, such as
judgements, weights, and texts that are in no turn. Each refusal says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from minimind.data.row_keys import Refusal, is_prose
from minimind.data.turn_keys import REASONING, ROLES, TURNS

Data = Mapping[str, Any]

_LISTS = ("messages", "conversations", "conversation")
_YES = (1, "1", "true", "yes", "good", "accept", "accepted", "chosen", "positive", "desirable",
        "upvote", "thumbs_up", "like", "correct")  # fmt: skip
_NO = (0, -1, "0", "-1", "false", "no", "bad", "reject", "rejected", "negative", "undesirable",
       "downvote", "thumbs_down", "dislike", "incorrect", "wrong")  # fmt: skip


def _is(*values: Any) -> Callable[[Any, Data], bool]:
    def applies(value: Any, read: Data) -> bool:
        value = value.strip().lower() if isinstance(value, str) else value
        return isinstance(value, bool | int | float | str) and value in values

    return applies


def _is_no_one(value: Any, read: Data) -> bool:
    return isinstance(value, bool | int | float | str | list) and value != 1


def _is_unsaid(value: Any, read: Data) -> bool:
    """Tells whether the value contains a text that occurs in none of the texts that are read."""
    said = list(_texts(read))
    return is_prose(value) and any(
        not any(text in other for other in said)
        and _spaced(text) not in _spaced("\n".join(said))
        for text in _texts(value)
    )  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    """Yields all texts in a value, but not its keys."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _ends_before(value: Any, read: Data) -> bool:
    """Tells whether the value may be the answer that the last turn lacks."""
    turns = next((read[key] for key in _LISTS if key in read), None)
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not is_prose(value) or not isinstance(last, Mapping):
        return False
    role = last.get("role", last.get("from"))
    return isinstance(role, str) and ROLES.get(role.lower()) != "assistant"


_PAIR = Refusal("a preference pair is for --stage dpo: a conversation beside it would be learned "
                "as if it were the better answer")  # fmt: skip
_LABEL = (
    "a row with a label is for --stage kto: here the bad answers would be learned as the good "
    "ones; leave the key out of the rows that are to be learned"
)
_WRONG = Refusal("the row itself says that its answer is not a good one: leave the row out",
                 applies=_is(*_NO))  # fmt: skip
_LEFT_OUT = "the row itself says that it is not to be learned: leave it out"
_WEIGHT = Refusal(
    'weights of whole rows are not read: leave a row out, or write "weight": 0 in the turns '
    "that are not to be learned",
    applies=_is_no_one,
)
_UNSAID = Refusal(
    'holds a text that is in no turn and would be left out: write it into the "system" of the row '
    "or into the turn where it belongs, or leave the key out",
    applies=_is_unsaid,
)
_UNTHOUGHT = Refusal(
    'holds reasoning that is in no turn and would be left out: write it as "reasoning_content" of '
    "the assistant's turn where it belongs, or leave the key out",
    applies=_is_unsaid,
)
_UNANSWERED = Refusal(
    "holds an answer that is in no turn, and the turns end before it: write it as the assistant's "
    "last turn, or leave the key out",
    applies=_ends_before,
)
_PROMPTS = Refusal("only the assistant's turns are targets: leave the key out",
                   applies=_is(True, "true"))  # fmt: skip

NO_MEDIA = {
    key: TURNS.refused[key] for key in TURNS.refused if key.startswith(("image", "audio", "video"))
}
"""Refusals that apply to every kind of row."""
_REFUSED = {
    **NO_MEDIA,
    # Texts beside a conversation. A key that a form reads counts as used and is not refused.
    **dict.fromkeys(
        ("instruction", "instructions", "system_instruction", "developer", "question", "query",
         "problem", "prompt", "input", "context", "persona", "character", "profile", "scenario",
         "background", "knowledge", "passage", "document", "documents"),
        _UNSAID,
    ),
    **dict.fromkeys((*REASONING, "analysis", "rationale"), _UNTHOUGHT),
    # How much, or which part, of a row is to be learned.
    **dict.fromkeys(
        ("weight", "weights", "sample_weight", "example_weight", "train_weight", "loss_weight",
         "loss_scale"),
        _WEIGHT,
    ),
    **dict.fromkeys(("mask", "masked", "loss_mask", "train_mask"), TURNS.refused["mask"]),
    **dict.fromkeys(("train_detail", "training_detail"), TURNS.refused["train_detail"]),
    **dict.fromkeys(
        ("train", "training", "trainable", "train_on_turn", "is_trained", "is_train", "learn",
         "supervised"),
        Refusal(_LEFT_OUT, applies=_is(0, "false", "no")),
    ),
    "loss": Refusal(_LEFT_OUT, applies=lambda value, read: value is False),
    **dict.fromkeys(
        ("ignore", "exclude", "skip", "deleted", "no_loss"),
        Refusal(_LEFT_OUT, applies=_is(1, "true", "yes")),
    ),
    **dict.fromkeys(("train_on_inputs", "train_on_input", "train_on_prompt"), _PROMPTS),
}  # fmt: skip
"""Refusals that apply to conversations and to pairs."""
CHAT_REFUSED = {
    **_REFUSED,
    **dict.fromkeys(("output", "response", "answer", "completion", "reply"), _UNANSWERED),
    "chosen": _PAIR,
    "rejected": _PAIR,
    "label": Refusal(_LABEL, applies=_is(*_YES, *_NO)),
    "kto_tag": Refusal(_LABEL),
    **dict.fromkeys(
        ("is_correct", "correct", "is_good", "accepted", "approved", "desirable", "feedback"),
        _WRONG,
    ),
}
PAIR_REFUSED = {
    **_REFUSED,
    "label": Refusal(
        'which answer is the better one is read from "chosen" and "rejected" alone: leave the '
        "row out where the label says otherwise, and the key in the others",
        applies=_is(*_NO, True, "true"),
    ),
}
