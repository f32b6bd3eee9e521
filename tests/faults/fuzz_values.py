"""Makes JSON values, and files, that are nearly right: by hypothesis, from right ones."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

_WORDS: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), 10**9, 2**63, 10**400, "", "x", "\0",
    "\ud800", "a" * 5000, "../../etc/passwd", "(a+)+$", "{{ 1/0 }}", [], {}, [[]], {"a": {}},
    [1, "a", None], {"type": "Sequence"},
]  # fmt: skip
"""Values that programs are known to fall over."""
_NAMES = st.sampled_from(["x", "", "type", "minimind"]) | st.text(max_size=8)
_LEAVES = (
    st.sampled_from(_WORDS)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=8,
)
"""JSON values of any kind."""
_DEEPEST = 8


@st.composite
def changed(draw: DrawFn, value: Any, depth: int = 0) -> Any:
    """Gives a copy of a JSON value of which some part is replaced, left out or added."""
    how = draw(st.integers(0, 9))
    if how == 0 or depth > _DEEPEST or not isinstance(value, dict | list) or not value:
        return draw(VALUES)
    if isinstance(value, dict):
        key = draw(st.sampled_from(sorted(value)))
        if how == 1:
            return {k: v for k, v in value.items() if k != key}
        if how == 2:
            return value | {draw(_NAMES): draw(VALUES)}
        return value | {key: draw(changed(value[key], depth + 1))}
    at = draw(st.integers(0, len(value) - 1))
    if how == 1:
        return value[:at] + value[at + 1 :]
    return [*value[:at], draw(changed(value[at], depth + 1)), *value[at + 1 :]]


@st.composite
def changed_bytes(draw: DrawFn, content: bytes) -> bytes:
    """Gives bytes of which some are replaced, cut out or repeated."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        new = draw(st.binary(max_size=8) | st.just(content[start:end] * 3))
        content = content[:start] + new + content[end:]
    return content


def changed_json(content: bytes) -> SearchStrategy[bytes]:
    """Gives a JSON file with other values, and now and then with other bytes."""
    by_value = changed(json.loads(content)).map(lambda value: json.dumps(value).encode())
    return st.one_of(*3 * [by_value], changed_bytes(content))
