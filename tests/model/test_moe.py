"""The mixture of experts against `transformers`, and what packing, recomputing, decoding and
splitting a step must not change in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import (
    EXPERTS,
    gradients,
    pack,
    random_documents,
    random_model,
    small_config,
)
from torch import Tensor

from minimind.model.moe import MixtureOfExperts
from minimind.model.router_report import RouterReport
from minimind.model.transformer import Transformer
from minimind.types import Batch, ModelOutput


def train(model: Transformer, batch: Batch) -> tuple[Tensor, ModelOutput]:
    """(summed cross-entropy, output) of a training forward."""

    def head(hidden_MD: Tensor, weight_VD: Tensor) -> Tensor:
        labels_M = batch.labels_BT.flatten()
        logits_MV = hidden_MD @ weight_VD.T
        return torch.nn.functional.cross_entropy(logits_MV, labels_M, reduction="none")

    output = model.train()(batch, head)
    return output.per_token.sum(), output


def aux_of(model: Transformer, batch: Batch) -> Tensor:
    aux_loss = train(model, batch)[1].aux_loss
    assert aux_loss is not None
    return aux_loss


def watch_loads(model: Transformer) -> list[Tensor]:
    """Gets each forward's tokens by layer with experts and expert."""
    found: list[Tensor] = []
    mixtures = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
    mixtures[-1].register_forward_hook(
        lambda _, inputs, output: found.append(inputs[1].count_load()[0])
    )
    return found


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], rtol: float = 2e-5) -> None:
    for name, gradient in left.items():
        assert (gradient - right[name]).norm() <= rtol * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("num_experts_per_tok", [1, 2, 3])
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_values_and_gradients_are_those_of_transformers(
    num_experts_per_tok: int, norm_topk_prob: bool
):
    """Output, auxiliary loss, and the gradients of both through router, experts and input."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe import modeling_qwen3_moe as theirs

    config = small_config(
        num_experts=4,
        num_experts_per_tok=num_experts_per_tok,
        moe_intermediate_size=40,
        norm_topk_prob=norm_topk_prob,
    )
    ours = random_model(config).layers[0].mlp
    assert isinstance(ours, MixtureOfExperts)
    fields = ("hidden_size", "num_experts", "num_experts_per_tok", "moe_intermediate_size")
    hf_config = Qwen3MoeConfig(
        norm_topk_prob=norm_topk_prob, **{name: getattr(config, name) for name in fields}
    )
    block = theirs.Qwen3MoeSparseMoeBlock(hf_config)
    with torch.no_grad():
        block.gate.weight.copy_(ours.gate.weight)
        block.experts.gate_up_proj.copy_(ours.gate_up_proj)
        block.experts.down_proj.copy_(ours.down_proj)

    (document,) = random_documents([30])
    batch = pack([[document]])
    x_MD = torch.randn(30, 32, generator=torch.Generator().manual_seed(1))
    upstream_MD = torch.randn(30, 32, generator=torch.Generator().manual_seed(2))
    mine, other = x_MD.clone().requires_grad_(), x_MD.clone().requires_grad_()
    report = RouterReport(batch)
    out_MD = ours(mine, report)
    aux_loss = report.sum_up(1.0)
    expected_MD = block(other[None])[0]
    logits_ME = other @ block.gate.weight.T
    expected_aux = theirs.load_balancing_loss_func((logits_ME,), 4, num_experts_per_tok)
    torch.testing.assert_close(out_MD, expected_MD, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(aux_loss, expected_aux, atol=1e-6, rtol=1e-5)

    weights = (ours.gate.weight, ours.gate_up_proj, ours.down_proj)
    their_weights = (block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj)
    found = torch.autograd.grad((out_MD * upstream_MD).sum() + aux_loss, [mine, *weights])
    expected = torch.autograd.grad(
        (expected_MD * upstream_MD).sum() + expected_aux, [other, *their_weights]
    )
    for name, f, e in zip(("x", "gate", "gate_up", "down"), found, expected, strict=True):
        assert e.norm() > 0, name
        assert (f - e).norm() <= 2e-5 * e.norm(), name


@pytest.mark.parametrize("experts", EXPERTS, ids=str)
def test_packed_documents_train_as_padded_ones(experts: dict[str, Any]):
    """Loss, auxiliary loss, load and every gradient: what padding is routed to never counts."""
    model = random_model(small_config(**experts))
    loads = watch_loads(model)
    documents = random_documents([12, 1, 5, 19, 2])
    packed = pack([documents[:3], documents[3:]], seq_len=21)
    padded = pack([[d] for d in documents], seq_len=26)
    results = []
    for batch in (packed, padded):
        loss, output = train(model, batch)
        assert output.aux_loss is not None
        total = loss + output.aux_loss * 50
        results.append((loss, output.aux_loss, gradients(model, total)))
    (loss, aux, grads), (other_loss, other_aux, other_grads) = results
    load_LE, other_load_LE = loads
    torch.testing.assert_close(loss, other_loss, rtol=2e-6, atol=0)
    torch.testing.assert_close(aux, other_aux, rtol=2e-6, atol=0)
    assert torch.equal(load_LE, other_load_LE)
    layers = 2 - len(experts.get("mlp_only_layers", ()))
    slots = 39 * model.config.num_experts_per_tok
    assert load_LE.sum(1).tolist() == [slots] * layers
    assert_same(grads, other_grads)


def test_routers_report_in_training_alone():
    model = random_model(small_config(**EXPERTS[0]))
    batch = pack([random_documents([9])])
    assert train(model, batch)[1].aux_loss is not None
    with torch.no_grad():
        assert train(model, batch)[1].aux_loss is None
    model.eval()
    assert model(batch, lambda hidden_MD, weight_VD: hidden_MD.sum(1)).aux_loss is None
    assert train(random_model(small_config()), batch)[1].aux_loss is None


@pytest.mark.parametrize("experts", EXPERTS, ids=str)
def test_recomputed_activations_report_the_same(experts: dict[str, Any]):
    model = random_model(small_config(dropout=0.2, **experts))
    batch = pack([random_documents([9, 3, 14])])
    results = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        torch.manual_seed(5)
        loss, output = train(model, batch)
        assert output.aux_loss is not None
        grads = gradients(model, loss + output.aux_loss * 100)
        results.append((output.aux_loss, grads))
    (aux, grads), (again, grads_again) = results
    assert torch.equal(aux, again)
    for name in grads:
        assert torch.equal(grads[name], grads_again[name]), name


def test_a_single_weight_of_1_leaves_the_router_to_the_auxiliary_loss():
    batch = pack([random_documents([20])])

    def router_gradients(family: str, **changes: Any) -> tuple[Tensor, Tensor]:
        """Of the loss and of the auxiliary loss."""
        model = random_model(small_config(family, num_experts=4, **changes))
        loss, output = train(model, batch)
        assert output.aux_loss is not None
        gate = model.get_submodule("layers.1.mlp.gate").weight
        of_loss = torch.autograd.grad(loss, gate, retain_graph=True)[0]
        return of_loss, torch.autograd.grad(output.aux_loss, gate)[0]

    of_loss, of_aux = router_gradients("qwen3")
    assert of_loss.abs().max() < 1e-6
    assert of_aux.norm() > 1e-6
    for family, changes in (("qwen3", {"norm_topk_prob": False}), ("llama", {})):
        of_loss, _ = router_gradients(family, **changes)
        assert of_loss.norm() > 1e-2


def test_fresh_experts_and_routers_are_drawn_as_every_matrix():
    config = small_config(vocab_size=500, num_experts=8, num_experts_per_tok=2, hidden_size=128)
    model = Transformer(config)
    model.init_weights(3)
    for name in ("gate.weight", "gate_up_proj", "down_proj"):
        weight = dict(model.named_parameters())[f"layers.1.mlp.{name}"]
        assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
        assert not torch.equal(weight[0], weight[1]), name


def test_the_coefficient_scales_the_auxiliary_loss_and_nothing_else():
    batch = pack([random_documents([20])])
    one, two = (random_model(small_config(router_aux_loss_coef=c, **EXPERTS[0])) for c in (1, 0.01))
    torch.testing.assert_close(aux_of(one, batch) * 0.01, aux_of(two, batch))
    assert torch.equal(train(one, batch)[0], train(two, batch)[0])


def test_the_auxiliary_loss_of_an_even_load_is_its_least():
    """1 per layer by document, S per layer over the batch (SPEC's forms), times the coefficient."""
    batch = pack([random_documents([24])])
    for seq_aux, least in ((True, 1.0), (False, 2.0)):
        config = small_config(**EXPERTS[0], seq_aux=seq_aux, router_aux_loss_coef=1.0)
        model = Transformer(config)
        model.init_weights(0)  # Nearly the same probability for every expert.
        assert aux_of(model, batch).item() == pytest.approx(2 * least, rel=0.02)


def test_what_splitting_a_step_does_to_the_auxiliary_loss():
    """The engine adds each micro-batch's, weighted by its targets. By document it is then the same
    however documents of one length fall into micro-batches or ranks; over the batch it is the
    micro-batch's own, and differs: balance is asked of each part, not of the whole step."""
    documents = random_documents([12] * 4)
    whole = pack([[d] for d in documents])
    halves = [pack([[d] for d in documents[i : i + 2]]) for i in (0, 2)]
    quarters = [pack([[d]]) for d in documents]

    def step(model: Transformer, parts: list[Batch]) -> float:
        counts = [part.num_targets for part in parts]
        auxes = [aux_of(model, part).item() for part in parts]
        return sum(a * n for a, n in zip(auxes, counts, strict=True)) / sum(counts)

    by_document, over_batch = (
        random_model(small_config(**EXPERTS[0], seq_aux=seq_aux, router_aux_loss_coef=1.0))
        for seq_aux in (True, False)
    )
    for parts in (halves, quarters):
        assert step(by_document, parts) == pytest.approx(step(by_document, [whole]), rel=1e-6)
        assert step(over_batch, parts) > step(over_batch, [whole]) * 1.001


def test_documents_of_other_lengths_weigh_by_their_micro_batchs_targets():
    """The mean over documents is a micro-batch's own: a short one alone weighs less than beside a
    long one."""
    long, short = random_documents([31, 3])
    model = random_model(small_config(**EXPERTS[0], seq_aux=True, router_aux_loss_coef=1.0))
    a, b = (aux_of(model, pack([[d]])).item() for d in (long, short))
    together = aux_of(model, pack([[long, short]])).item()
    assert together == pytest.approx((a + b) / 2, rel=1e-5)


def test_in_bf16_experts_keep_their_router_in_fp32_from_the_softmax_on():
    model = random_model(small_config(**EXPERTS[0])).bfloat16()
    loss, output = train(model, pack([random_documents([9, 4])]))
    assert output.aux_loss is not None
    assert output.aux_loss.dtype == torch.float32
    for name, gradient in gradients(model, loss + output.aux_loss).items():
        assert gradient.isfinite().all(), name
        assert gradient.dtype == torch.bfloat16, name
