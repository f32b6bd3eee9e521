"""Adapters beside linears, against W + alpha/r · B·A written out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_adapters import UNEQUAL, adapted, named, ranks_of
from small_models import (
    EXPERTS,
    logits_of,
    loss_of,
    pack,
    random_documents,
    random_model,
    small_config,
)
from torch import Tensor, nn

from minimind.lora import experts as expert_adapters
from minimind.lora.adapter import merge_adapter
from minimind.lora.linear import FusedAdapter, LoraLinear, PartSpec, split_parts
from minimind.lora.model import add_adapters, collect_adapter, detach
from minimind.model.state_dict import LinearPart, linear_parts, split_fused
from minimind.model.transformer import Transformer

PARTS = {
    "whole": [((0, 10), 4)],
    "all parts": [((0, 4), 3), ((4, 7), 3), ((7, 10), 3)],
    "unequal ranks, one part without": [((0, 4), 2), ((7, 10), 5)],
}


def make_linear(case: str, dtype: torch.dtype) -> LoraLinear:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    linear = nn.Linear(6, 10, bias=False, dtype=dtype)
    linear.weight = nn.Parameter(random(10, 6))
    specs = [
        PartSpec(LinearPart(f"part{i}", slice(*rows), slice(0, 6)), rank, alpha=2.5 * rank + i)
        for i, (rows, rank) in enumerate(PARTS[case])
    ]
    num_b = sum(spec.part.num_rows * spec.rank for spec in specs)
    a_RI = random(sum(s.rank for s in specs), 6)
    return LoraLinear(linear, FusedAdapter(tuple(specs), a_RI, random(num_b)))


def explicit(linear: LoraLinear, x_MI: Tensor) -> Tensor:
    weight = linear.weight.clone()
    for spec, _, a_RI, b_OR in split_parts(linear.specs, linear.lora_A, linear.lora_B):
        rows = torch.arange(spec.part.rows.start, spec.part.rows.stop)
        weight = weight.index_add(0, rows, spec.alpha / spec.rank * b_OR @ a_RI)
    return x_MI @ weight.T


@pytest.mark.parametrize("case", PARTS)
def test_output_and_gradients_are_those_of_the_summed_weight(case: str):
    linear = make_linear(case, torch.float64)
    torch.manual_seed(0)
    x_MI = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    grad_MO = torch.randn(7, 10, dtype=torch.float64)
    inputs = (x_MI, linear.weight, linear.lora_A, linear.lora_B)
    found, expected = linear(x_MI), explicit(linear, x_MI)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, grad_MO),
        torch.autograd.grad(expected, inputs, grad_MO),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(linear(x_MI), expected)


def test_a_fused_adapter_is_its_parts_apart():
    """The same columns as each part with a linear of its own."""
    fused = make_linear("unequal ranks, one part without", torch.float32)
    torch.manual_seed(0)
    x_MI = torch.randn(5, 6)
    y_MO = fused(x_MI)
    pieces = list(split_parts(fused.specs, fused.lora_A, fused.lora_B))
    for spec, _, a_RI, b_OR in pieces:
        rows = spec.part.rows
        alone = nn.Linear(6, spec.part.num_rows, bias=False)
        alone.weight = nn.Parameter(fused.weight[rows].detach())
        place = LinearPart("alone", slice(0, spec.part.num_rows), slice(0, 6))
        b_flat = b_OR.detach().flatten()
        specs = (PartSpec(place, spec.rank, spec.alpha),)
        part = LoraLinear(alone, FusedAdapter(specs, a_RI.detach(), b_flat))
        torch.testing.assert_close(part(x_MI), y_MO[:, rows], rtol=1e-5, atol=1e-5)
    bare = slice(4, 7)
    torch.testing.assert_close(y_MO[:, bare], x_MI @ fused.weight[bare].T)


def test_a_frozen_weight_gets_no_gradient_and_costs_no_product():
    linear = make_linear("whole", torch.float32)
    linear.weight.requires_grad_(False)
    y_MO = linear(torch.randn(3, 6))
    needed = y_MO.grad_fn.needs_input_grad  # type: ignore[union-attr]
    assert needed[:4] == (False, False, True, True)
    y_MO.sum().backward()
    assert linear.weight.grad is None
    assert linear.lora_A.grad is not None


KINDS = [*(("llama", {}), ("qwen3", {})), *(("qwen3", experts) for experts in EXPERTS)]


@pytest.mark.parametrize(("family", "experts"), KINDS)
def test_fresh_adapters_change_nothing(family: str, experts: dict[str, Any]):
    model = random_model(small_config(family, **experts))
    batch = pack([random_documents([9, 14])])
    before, state = logits_of(model, batch), named(model)
    ranks = ranks_of(model.config, dict.fromkeys(UNEQUAL, 16))
    add_adapters(model, ranks, dict.fromkeys(ranks, 32.0), seed=3)
    torch.testing.assert_close(logits_of(model, batch), before, rtol=1e-5, atol=1e-5)
    after = named(model)
    for name, weight in state.items():
        assert torch.equal(after[name], weight)
    added = after.keys() - state.keys()
    assert {name[-6:] for name in added} == {"lora_A", "lora_B"}
    for name in added:
        expected = 0.02 if name.endswith("A") else 0
        assert after[name].std().item() == pytest.approx(expected, rel=0.15)
    detach(model)
    assert named(model).keys() == state.keys()
    assert torch.equal(logits_of(model, batch), before)


def test_an_adapter_starts_the_same_whatever_others_there_are():
    few, all_of_them = (random_model(small_config()) for _ in range(2))
    for model, kinds in ((few, {"v_proj": 5}), (all_of_them, UNEQUAL)):
        ranks = ranks_of(model.config, kinds)
        add_adapters(model, ranks, dict.fromkeys(ranks, 1.0), seed=3)
    name = "model.layers.1.self_attn.v_proj"
    one, other = (collect_adapter(m, named(m))[name] for m in (few, all_of_them))
    assert torch.equal(one.a_RI, other.a_RI)


def group_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all experts go through one product, as on a GPU, with PyTorch's form of it in fp32."""

    def grouped(a: Tensor, b: Tensor, offs: Tensor) -> Tensor:
        bounds = [0, *offs.tolist()]
        return torch.cat([a[i:j] @ w for (i, j), w in zip(itertools.pairwise(bounds), b)])  # noqa: B905

    monkeypatch.setattr(expert_adapters, "can_group", lambda *_: True)
    monkeypatch.setattr(torch.nn.functional, "grouped_mm", grouped)


def test_the_grouped_product_is_that_of_each_expert():
    torch.manual_seed(0)
    x, weight = torch.randn(9, 16, requires_grad=True), torch.randn(3, 8, 16)
    ends = torch.tensor([4, 4, 9], dtype=torch.int32)  # the second expert has no tokens
    y = expert_adapters._GroupedProduct.apply(x, weight, ends)
    expected = torch.cat([x[:4] @ weight[0].T, x[4:] @ weight[2].T])
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(out, x, grad)[0] for out in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
@pytest.mark.parametrize(("family", "experts"), KINDS)
def test_the_adapted_model_is_the_merged_one(
    family: str, experts: dict[str, Any], grouped: bool, monkeypatch: pytest.MonkeyPatch
):
    """Logits, and the gradient of A and B through the whole model."""
    if grouped:
        group_on_a_cpu(monkeypatch)
    model = adapted(random_model(small_config(family, **experts))).double()
    batch = pack([random_documents([9, 14]), random_documents([20])], seq_len=23)
    adapter = collect_adapter(model, named(model))
    assert len(adapter) == len(ranks_of(model.config, UNEQUAL))
    merged = Transformer(model.config).double()
    base = {name: weight for name, weight in named(model).items() if "lora" not in name}
    merged.load_named(merge_adapter(model.config, base, adapter, "here"))
    torch.testing.assert_close(
        logits_of(merged, batch), logits_of(model, batch), rtol=1e-4, atol=1e-5
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora" in name for name in trained)
    grads = dict(
        zip(trained, torch.autograd.grad(loss_of(model, batch), trained.values()), strict=True)
    )
    grad_w = dict(
        zip(
            (name for name, _ in merged.named_parameters()),
            torch.autograd.grad(loss_of(merged, batch), list(merged.parameters())),
            strict=True,
        )
    )
    by_part = split_fused(model.config, grad_w)
    for name, part in collect_adapter(model, grads).items():
        a, b = adapter[name].a_RI, adapter[name].b_OR
        grad_OI, scale = by_part[f"{name}.weight"], adapter[name].alpha / adapter[name].rank
        torch.testing.assert_close(part.a_RI, scale * b.T @ grad_OI, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(part.b_OR, scale * grad_OI @ a.T, rtol=1e-3, atol=1e-4)


def test_only_adapters_move():
    model = adapted(random_model(small_config()))
    model.activation_checkpointing = True
    batch, before = pack([random_documents([12])]), named(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(3):
        loss = loss_of(model, batch)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, weight in named(model).items():
        assert torch.equal(weight, before[name]) == ("lora" not in name), name


@pytest.mark.parametrize("grouped", [False, True], ids=["one by one", "grouped"])
@pytest.mark.parametrize("kinds", [{"up_proj": 2}, {"down_proj": 2}, {"experts.2.gate_proj": 3}])
def test_experts_may_have_adapters_in_part(
    kinds: dict[str, int], grouped: bool, monkeypatch: pytest.MonkeyPatch
):
    """In one stack of the two, or for one expert alone, which no token may have gone to."""
    if grouped:
        group_on_a_cpu(monkeypatch)
    config = small_config(num_experts=4, num_experts_per_tok=1)
    names = [part.name for parts in linear_parts(config).values() for part in parts]
    ranks = {n: rank for n in names for kind, rank in kinds.items() if n.endswith(kind)}
    model = random_model(config)
    torch.manual_seed(0)
    add_adapters(model, ranks, dict.fromkeys(ranks, 3.0), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn_like(parameter))
    batch = pack([random_documents([3])])
    base = {name: weight for name, weight in named(model).items() if "lora" not in name}
    adapter = collect_adapter(model, named(model))
    assert adapter.keys() == ranks.keys()
    merged = Transformer(config)
    merged.load_named(merge_adapter(config, base, adapter, "here"))
    torch.testing.assert_close(
        logits_of(model, batch), logits_of(merged, batch), rtol=1e-4, atol=1e-4
    )
    loss_of(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == ("lora" in name), name
