"""How tokens are chosen, as llama.cpp's clients ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from minimind.inference.sampling import SamplingParams
from minimind.serving.api_errors import ApiError
from minimind.serving.sampling_fields import SamplingFields

LLAMA_CPP: Any = [
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
]  # fmt: skip
"""The list of llama.cpp's server where a client gives none."""


def params(**fields: Any) -> SamplingParams:
    return SamplingFields.model_validate(fields).sampling_params(0)


@pytest.mark.parametrize("samplers", [None, "", [], LLAMA_CPP, "edkypmxt", ["temperature"]])
def test_a_list_of_samplers_that_changes_nothing(samplers: Any) -> None:
    assert params(samplers=samplers, temperature=0.5) == params(temperature=0.5)


@pytest.mark.parametrize(
    ("asked", "applied"),
    [
        ({"samplers": ["top_k"], "top_k": 5, "temperature": 0.5, "min_p": 0.1}, {"top_k": 5}),
        ({"samplers": "t", "top_k": 5, "temperature": 0.5}, {"temperature": 0.5}),
        ({"samplers": "tk", "top_k": 5, "repeat_penalty": 1.5}, {"top_k": 5}),
        ({"samplers": ["nobody_s"], "top_k": 5}, {}),
        ({"samplers": "kt", "top_k": 5, "temperature": 0.5}, {"top_k": 5, "temperature": 0.5}),
        ({"samplers": LLAMA_CPP, "top_p": 0.5}, {"top_p": 0.5}),
        ({"samplers": LLAMA_CPP, "top_p": 0.5, "temperature": 0}, {"top_p": 0.5, "temperature": 0}),
        ({"samplers": "tmk", "top_k": 5, "min_p": 0.5}, {"top_k": 5, "min_p": 0.5}),
    ],
)
def test_only_those_that_are_listed_apply(asked: dict[str, Any], applied: dict[str, Any]) -> None:
    assert params(**asked) == params(**applied)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"samplers": LLAMA_CPP, "top_p": 0.9, "temperature": 0.5}, "temperature behind top_p"),
        ({"samplers": "mt", "min_p": 0.1, "temperature": 0.5}, "temperature behind min_p"),
        ({"samplers": "te", "repeat_penalty": 2.0, "temperature": 0.5}, "penalties behind temp"),
        ({"samplers": "pk", "top_k": 5, "top_p": 0.5}, "top_k behind top_p: the order here is"),
    ],
)
def test_an_order_that_would_give_another_text_is_refused(
    asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ApiError, match=f"samplers is not supported with {words}") as raised:
        params(**asked)
    assert raised.value.param == "samplers"


def test_how_far_back_penalties_look() -> None:
    assert params(repeat_last_n=64) == params(repeat_last_n=-1) == params()
    assert params(repeat_last_n=64, repeat_penalty=1.0) == params()
    penalty = {"repeat_penalty": 1.5, "presence_penalty": 1.0}
    assert params(repeat_last_n=-1, **penalty) == params(**penalty)
    assert params(repeat_last_n=0, **penalty) == params()
    with pytest.raises(ApiError, match="repeat_last_n 64 is not supported beside repetition_pen"):
        params(repeat_last_n=64, **penalty)
