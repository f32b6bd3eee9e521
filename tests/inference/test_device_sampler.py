"""Sampling that the host does not wait for, against the sampler that it does wait for."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from grammars import compiled
from samplers import CPU, Opened, read
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.inference.batch_settings import UsedSettings, round_up
from minimind.inference.device_sampler import DeviceSampler
from minimind.inference.grammar_texts import AnswerForm, regex_rules
from minimind.inference.pending_tokens import PendingTokens
from minimind.inference.sampler import Sampler
from minimind.inference.sampling import SamplingParams

META = torch.device("meta")
V = 700
"""More than are sorted at first."""
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}
HELD = compiled(AnswerForm(content=regex_rules("[!-~]+")), V)
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 1.0, "top_k": 9},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "nearly all": {"temperature": 3.0, "top_p": 0.99},
    "top_k and top_p": {"temperature": 1.3, "top_k": 40, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "penalties": PENALTIES,
    "all": {
        "temperature": 1.2,
        "top_k": 300,
        "top_p": 0.9,
        "min_p": 0.01,
        "logprobs": 3,
        **PENALTIES,
    },
    "logprobs": {"logprobs": 0},
    "tempered": {"temperature": 0.7, "logprobs": 5, "tempered_logprobs": True},
    "bias": {"temperature": 1.0, "logit_bias": ((7, 9.0), (V - 1, 2.5), (3, -100.0))},
    "held": {"temperature": 1.5, "top_p": 0.9, "grammar": HELD, "logprobs": 1},
    "held and all": {"grammar": HELD, "logit_bias": ((40, 100.0),), **PENALTIES},
}
ALL = [SamplingParams(seed=i, max_new_tokens=9, **o) for i, o in enumerate(OPTIONS.values())]


def logits_of(seed: int, rows: int) -> Tensor:
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def opened(kind: Any, params: list[SamplingParams], device: torch.device = CPU) -> Opened:
    more = (9,) if kind is DeviceSampler else ()
    return Opened(kind(len(params), V, device, *more), params, prompt=(3, 4))


@pytest.mark.parametrize(
    "params", [ALL, *([one] * 3 for one in ALL)], ids=["mixed", *OPTIONS.keys()]
)
def test_tokens_are_those_of_a_cpu(params: list[SamplingParams]):
    """Of every option, and their log-probabilities: bit for bit."""
    host, device = opened(Sampler, params), opened(DeviceSampler, params)
    for step in range(9):
        logits_BV = logits_of(step, len(params))
        slots = list(range(len(params)))
        assert device.sample(logits_BV, slots) == host.sample(logits_BV, slots)


def test_rows_that_fill_a_batch_up_are_without_effect():
    """Whatever their logits are: those of a GPU's graph are not the first row's to the last bit."""
    params = ALL[1:6] + ALL[8:9]
    host, device = opened(Sampler, params), opened(DeviceSampler, params)
    slots = list(range(len(params)))
    for step in range(9):
        logits_BV = logits_of(step, 8)
        logits_BV[7] = float("nan")
        asked = device.sampler.place(device.batch, 8)
        packed, ids_B = device.sampler.sample_placed(logits_BV, asked)
        found = read(PendingTokens(packed, device.batch, asked, range(8)))
        assert found == host.sample(logits_BV[:6], slots)
        assert (ids_B[6:] == ids_B[0]).all(), "they go on as the first does"


def test_the_order_of_rows_is_without_effect():
    host, device = opened(Sampler, ALL), opened(DeviceSampler, ALL)
    orders = itertools.cycle([[*range(len(ALL))], [*range(len(ALL))][::-1], [4, 8, 2], [6]])
    for step, slots in zip(range(9), orders, strict=False):
        logits_BV = logits_of(step, len(ALL))[slots]
        assert device.sample(logits_BV, slots) == host.sample(logits_BV, slots)


class NoCopies(TorchDispatchMode):
    """Raises where something goes from the host to the device or back."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, result) if isinstance(x, Tensor)]
        assert len({x.device for x in tensors}) <= 1, f"{func} is between devices"
        return result


@pytest.mark.parametrize(
    "params", [ALL, *([one] * 3 for one in ALL)], ids=["mixed", *OPTIONS.keys()]
)
def test_nothing_is_read_on_the_way(params: list[SamplingParams]):
    """Tensors without values raise where one is looked at, or where a size depends on them."""
    device, rows = opened(DeviceSampler, params, META), round_up(len(params))
    asked = device.sampler.place(device.batch, rows)
    with NoCopies():
        packed, ids_B = device.sampler.sample_placed(torch.empty(rows, V, device=META), asked)
    assert (ids_B.shape, ids_B.dtype) == ((rows,), torch.int64)
    assert packed.shape[0] == rows * (1 if asked.logprobs is None else 2 + 2 * asked.logprobs)


def test_the_sampler_of_a_cpu_does_look():
    """Else the test before would show nothing."""
    params = [SamplingParams(temperature=1.0, top_p=0.9)]
    host = opened(Sampler, params, META)
    with pytest.raises(RuntimeError, match="meta"):
        host.sample(torch.empty(1, V, device=META), [0])


def test_settings_that_are_like_take_the_same_graph():
    def asked(**changes: Any) -> UsedSettings:
        one = SamplingParams(temperature=0.8, **changes)
        return UsedSettings.by([one, dataclasses.replace(one, seed=1)], V, waits=False)

    assert asked(top_k=33, logprobs=5) == asked(top_k=64, logprobs=8)
    assert asked(top_k=33) != asked(top_k=65)
    assert asked(top_p=0.5) == asked(top_p=0.9) != asked()
    assert asked(min_p=0.5, top_k=10**6) == asked(min_p=0.1)
