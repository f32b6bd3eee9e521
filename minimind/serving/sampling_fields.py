"""Defines how a request chooses tokens: OpenAI's fields, and those of vLLM and llama.cpp."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated, Any

from pydantic import Field

from minimind.inference.sampling import SamplingParams
from minimind.serving.api_errors import ApiError
from minimind.serving.field_standing import NoEffect, Off, Refused
from minimind.serving.message_schemas import RequestPart

_SAMPLERS = {"penalties": "e", "temperature": "t", "top_k": "k", "top_p": "p", "min_p": "m"}
"""The samplers in the order in which they are applied, with llama.cpp's letters."""
_EITHER_WAY = ({"temperature", "top_k"}, {"top_k", "min_p"})
"""Pairs of samplers that give the same result in either order."""


class SamplingFields(RequestPart):
    """Holds the sampling fields. Ranges are OpenAI's where it has the field."""

    temperature: float | None = Field(None, ge=0, le=2)
    """0 always takes the likeliest token; the default is 1."""
    top_p: float | None = Field(None, ge=0, le=1)
    """0 keeps only the likeliest token."""
    seed: Annotated[
        int | None,
        # OpenAI's description rounds 2^63 like this: JSON cannot write a bound that is no double
        # exactly.
        Field(ge=-9_223_372_036_854_776_000, le=9_223_372_036_854_776_000),
        Off(-1),
    ] = None
    """The same request with the same seed gives the same text."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    top_k: Annotated[int | None, Field(ge=1, lt=2**31), Off(-1, 0)] = None
    """Keeps the k likeliest tokens."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Keeps tokens with at least this share of the likeliest token's probability."""
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    repeat_penalty: float | None = Field(None, ge=0.01, le=100)
    """llama.cpp's name for `repetition_penalty`."""
    repeat_last_n: int | None = Field(None, ge=-1, lt=2**31)
    """llama.cpp's field: 0 turns all penalties off. With a penalty, numbers other than -1 are
    refused, since penalties look at the whole text."""
    samplers: Annotated[str | list[str] | None, Off("", [])] = None
    """llama.cpp's field: which of penalties, temperature, top_k, top_p and min_p apply. An order
    that would give another text than the server's own order is refused."""

    typical_p: Annotated[Any, Refused("send `min_p`", 1)] = None
    tfs_z: Annotated[Any, Refused("send `min_p`", 1)] = None
    top_a: Annotated[Any, Refused("send `min_p`", 0)] = None
    top_n_sigma: Annotated[Any, Refused("send `min_p`", -1, 0)] = None
    min_keep: Annotated[Any, Refused("one token is kept at least", 0, 1)] = None
    mirostat: Annotated[Any, Refused("send `temperature`", 0)] = None
    mirostat_tau: Annotated[Any, NoEffect("`mirostat` is off")] = None
    mirostat_eta: Annotated[Any, NoEffect("`mirostat` is off")] = None
    dynatemp_range: Annotated[Any, Refused("send `temperature`", 0)] = None
    dynatemp_exponent: Annotated[Any, NoEffect("`dynatemp_range` is off")] = None
    adaptive_target: Annotated[Any, Refused("send `min_p`", -1)] = None
    adaptive_decay: Annotated[Any, NoEffect("`adaptive_target` is off")] = None
    xtc_probability: Annotated[Any, Refused("send `min_p`", 0)] = None
    xtc_threshold: Annotated[Any, NoEffect("`xtc_probability` is off")] = None
    dry_multiplier: Annotated[Any, Refused("send `repetition_penalty`", 0)] = None
    dry_base: Annotated[Any, NoEffect("`dry_multiplier` is off")] = None
    dry_allowed_length: Annotated[Any, NoEffect("`dry_multiplier` is off")] = None
    dry_penalty_last_n: Annotated[Any, NoEffect("`dry_multiplier` is off")] = None
    dry_sequence_breakers: Annotated[Any, NoEffect("`dry_multiplier` is off")] = None
    use_beam_search: Annotated[Any, Refused("tokens are drawn one by one", False)] = None
    length_penalty: Annotated[Any, Refused("there is no beam search", 1)] = None
    min_tokens: Annotated[Any, Refused("leave it out", 0)] = None
    bad_words: Annotated[Any, Refused("leave it out", [])] = None
    allowed_token_ids: Annotated[Any, Refused("leave it out", [])] = None
    logits_processors: Annotated[Any, Refused("leave it out", [])] = None

    def sampling_params(self, choice: int, **more: Any) -> SamplingParams:
        """Builds the SamplingParams of one choice; choices with the same seed differ. `more` are
        further fields of SamplingParams. Raises ApiError for fields that exclude each other."""
        asked = self._asked
        self._check_window(asked)
        if self.samplers is not None:
            asked = self._listed(asked)
        merged = {name: value for sampler in asked.values() for name, value in sampler.items()}
        seed = None if self.seed is None else (self.seed + choice) % 2**63
        return SamplingParams(**{"temperature": 1.0, **merged}, seed=seed, **more)

    @property
    def _asked(self) -> dict[str, dict[str, Any]]:
        """Gives the settings that change which tokens are chosen, by sampler. Temperature and top_p
        are 1 by default, as in OpenAI's API."""
        penalties = {
            "repetition_penalty": (self.repetition_penalty or self.repeat_penalty, 1.0),
            "presence_penalty": (self.presence_penalty, 0.0),
            "frequency_penalty": (self.frequency_penalty, 0.0),
        }
        if self.repeat_last_n == 0:
            penalties = {}
        given = {
            "penalties": penalties,
            "temperature": {"temperature": (self.temperature, 1.0)},
            "top_k": {"top_k": (1 if self.top_p == 0 else self.top_k, 0)},
            "top_p": {"top_p": (self.top_p or None, 1.0)},
            "min_p": {"min_p": (self.min_p, 0.0)},
        }
        asked = {
            sampler: {name: value for name, (value, off) in of.items() if value not in (None, off)}
            for sampler, of in given.items()
        }
        return {sampler: of for sampler, of in asked.items() if of}

    def _check_window(self, asked: dict[str, Any]) -> None:
        if "penalties" in asked and self.repeat_last_n not in (None, -1):
            name = next(iter(asked["penalties"]))
            raise _refusal(
                "repeat_last_n",
                f"{self.repeat_last_n} is not supported beside {name}: penalties look at all of "
                "the text (-1) or are off (0)",
            )

    def _listed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Gives the settings of only those samplers that `samplers` lists. Raises ApiError for an
        order that would change the result."""
        found = (name for name in self.samplers or () if name in (*_SAMPLERS, *_SAMPLERS.values()))
        by_letter = {letter: name for name, letter in _SAMPLERS.items()}
        order = list(dict.fromkeys(by_letter.get(name, name) for name in found))
        kept = {name: asked[name] for name in asked if name in order}
        if kept.get("temperature") == {"temperature": 0}:
            return kept  # the likeliest token is what every filter leaves
        for first, second in combinations(kept, 2):
            if order.index(first) > order.index(second) and {first, second} not in _EITHER_WAY:
                raise _refusal(
                    "samplers",
                    f"is not supported with {first} behind {second}: the order here is "
                    f"{', '.join(_SAMPLERS)}",
                )
        return kept


def _refusal(param: str, words: str) -> ApiError:
    return ApiError(400, f"{param} {words}", param=param)
