import minimind_kernels as K
import pytest
import torch
from minimind_kernels.linear_token_loss import linear_token_loss_reference
from minimind_kernels.token_chunks import TokenChunks
from torch.utils.checkpoint import checkpoint


def ids_for(num_tokens, vocab, device, ignored="some"):
    ids = torch.arange(num_tokens) * 5 % vocab
    if ignored == "few":
        ids[3::11] = -100
    elif ignored == "some":
        ids[1::3] = -100
    elif ignored == "all":
        ids[:] = -100
    return ids.to(device)


def loss_for(name, ids):
    """A loss whose constants differ from token to token and, where one is ignored, are NaN."""
    generator = torch.Generator().manual_seed(5)
    # About the log-probability of one of 67, so that some ratios are clipped and others are not.
    old, ref, advantage = (
        (torch.randn(ids.shape, generator=generator) * 0.5 + mean).to(ids.device).masked_fill(
            ids == -100, torch.nan
        )
        for mean in (-5.0, -5.0, 0.0)
    )  # fmt: skip

    def ppo(log_prob, rows):
        ratio = (log_prob - old[rows]).exp()
        return -torch.minimum(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])

    def cispo(log_prob, rows):
        ratio = (log_prob - old[rows]).exp().clamp(max=5)
        return -ratio.detach() * advantage[rows] * log_prob

    def k3(log_prob, rows):
        log_ratio = ref[rows] - log_prob
        return log_ratio.exp() - log_ratio - 1

    losses = {"plain": lambda log_prob, _: -log_prob, "ppo": ppo, "cispo": cispo, "k3": k3}
    return losses[name]


LOSSES = ("plain", "ppo", "cispo", "k3")


@pytest.mark.parametrize("num_tokens", [0, 1, 13])
@pytest.mark.parametrize("ignored", ["none", "few", "some", "all"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_token_loss(num_tokens, ignored, name, chunk_size, device, randn, assert_as_accurate):
    ids = ids_for(num_tokens, 67, device, ignored)
    token_loss = loss_for(name, ids)

    def ours(hidden, weight):
        return K.linear_token_loss(hidden, weight, ids, token_loss, chunk_size=chunk_size)[0].sum()

    def reference(hidden, weight):
        return linear_token_loss_reference(hidden, weight, ids, token_loss)[0].sum()

    # The factor costs a rounding more than the plain form's two; over one token none averages out.
    ratio = 4.0 if num_tokens == 1 else 1.5
    inputs = randn(num_tokens, 24, scale=0.2), randn(67, 24)
    assert_as_accurate(ours, reference, *inputs, ratio=ratio)


@pytest.mark.parametrize("ignored", ["none", "few", "some", "all"])
@pytest.mark.parametrize("want_grad", [False, True])
def test_each_tokens_loss_and_log_probability(ignored, want_grad, device, dtype, randn):
    ids = ids_for(13, 67, device, ignored)
    hidden, weight = randn(13, 24, scale=0.2), randn(67, 24)
    with torch.set_grad_enabled(want_grad):
        results = K.linear_token_loss(hidden, weight, ids, loss_for("ppo", ids), chunk_size=4)
        expected = linear_token_loss_reference(hidden, weight, ids, loss_for("ppo", ids))
    assert [t.requires_grad for t in results] == [want_grad, False]
    for actual, t in zip(results, expected, strict=True):
        torch.testing.assert_close(actual, t, rtol=2e-3, atol=2e-2)
        assert actual.dtype == torch.float32
        assert not actual[ids == -100].any()
    assert torch.equal(results[1], K.linear_log_prob(hidden, weight, ids, chunk_size=4).detach())


@pytest.mark.parametrize("num_tokens", [0, 1, 11])
@pytest.mark.parametrize("ignored", ["none", "few", "some", "all"])
def test_a_frozen_head_takes_any_gradient(num_tokens, ignored, device, randn, assert_as_accurate):
    ids = ids_for(num_tokens, 67, device, ignored)

    def ours(hidden, weight):
        return K.linear_token_loss(hidden, weight, ids, loss_for("ppo", ids), chunk_size=4)[0]

    def reference(hidden, weight):
        return linear_token_loss_reference(hidden, weight, ids, loss_for("ppo", ids))[0]

    inputs = randn(num_tokens, 24, scale=0.2), randn(67, 24).detach()
    assert_as_accurate(ours, reference, *inputs)


def test_frozen_hidden_states(device, randn, assert_as_accurate):
    ids = ids_for(17, 67, device)

    def loss(op):
        return lambda h, w: op(h, w, ids, loss_for("k3", ids))[0].sum()

    inputs = randn(17, 24, scale=0.2).detach(), randn(67, 24)
    assert_as_accurate(loss(K.linear_token_loss), loss(linear_token_loss_reference), *inputs)


def test_views_and_another_ignored_id(device, randn, assert_as_accurate):
    ids = torch.tensor([3, 9, 4, 9, 0], device=device)

    def loss(op):
        def call(hidden, weight):
            return op(hidden[::2], weight.t(), ids, lambda log_prob, _: log_prob.square(), 9)[
                0
            ].sum()

        return call

    inputs = randn(10, 6), randn(6, 11)
    assert_as_accurate(loss(K.linear_token_loss), loss(linear_token_loss_reference), *inputs)


@pytest.mark.parametrize("ignored", ["none", "few", "some"])
def test_each_counted_token_is_asked_for_once(ignored, device):
    ids = ids_for(13, 67, device, ignored)
    hidden = torch.randn(13, 24, device=device, requires_grad=True)
    asked = []

    def token_loss(log_prob, rows):
        asked.append(torch.arange(13, device=device)[rows])
        assert len(asked[-1]) == len(log_prob) <= 4
        return log_prob * 2

    K.linear_token_loss(hidden, torch.randn(67, 24, device=device), ids, token_loss, chunk_size=4)
    tokens = torch.cat(asked)
    counted = (ids != -100).nonzero().squeeze(1)
    assert torch.equal(tokens[ids[tokens] != -100], counted)


def test_the_logits_are_made_once(monkeypatch):
    made = []
    logits = TokenChunks.logits
    monkeypatch.setattr(TokenChunks, "logits", lambda *a: made.append(1) or logits(*a))
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (6, 11))
    loss, _ = K.linear_token_loss(hidden, weight, torch.arange(6), lambda log_prob, _: -log_prob)
    loss.mean().backward()
    assert len(made) == 1


def test_a_gradient_that_is_not_uniform_is_refused():
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (5, 11))
    ids = torch.tensor([1, -100, 2, 3, 4])

    def losses():
        return K.linear_token_loss(hidden, weight, ids, lambda log_prob, _: -log_prob)[0]

    with pytest.raises(ValueError, match="weigh them inside token_loss"):
        losses().backward(torch.arange(5.0))
    losses().backward(torch.tensor([2.0, 5.0, 2.0, 2.0, 2.0]))
    assert hidden.grad is not None
    assert not hidden.grad[1].any()
    assert hidden.grad[0].any()


def test_inside_a_recomputed_part():
    """Checkpointing, which watches what autograd saves, leaves the derivative as it is."""
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (6, 11))
    ids = torch.arange(6)

    def mean(hidden, weight):
        return K.linear_token_loss(hidden * 2, weight, ids, loss_for("k3", ids))[0].mean()

    recomputed = checkpoint(mean, hidden, weight, use_reentrant=False)
    assert isinstance(recomputed, torch.Tensor)
    expected = torch.autograd.grad(mean(hidden, weight), (hidden, weight))
    for a, e in zip(torch.autograd.grad(recomputed, (hidden, weight)), expected, strict=True):
        assert torch.equal(a, e)


def test_compiled_whole():
    hidden, weight = (torch.randn(n, 8, requires_grad=True) for n in (6, 11))
    ids = ids_for(6, 11, "cpu")
    token_loss = loss_for("k3", ids)

    def loss(hidden, weight):
        return K.linear_token_loss(hidden, weight, ids, token_loss)[0].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden, weight)
    expected = loss(hidden, weight)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(result, (hidden, weight)) for result in (compiled, expected))
    )


def test_the_reference_has_right_gradients():
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 5))
    ids = torch.tensor([4, -100, 0])
    torch.autograd.gradcheck(
        lambda h, w: linear_token_loss_reference(h, w, ids, loss_for("k3", ids))[0],
        (hidden, weight),
    )


def test_wrong_arguments_are_named():
    hidden, weight, ids = torch.ones(3, 8, requires_grad=True), torch.ones(5, 8), torch.arange(3)
    with pytest.raises(ValueError, match=r"\(3, 8\) torch.float32, \(5, 4\)"):
        K.linear_token_loss(hidden, torch.ones(5, 4), ids, lambda log_prob, _: log_prob)
    with pytest.raises(ValueError, match=r"log-probabilities \(3,\) .* not \(\)"):
        K.linear_token_loss(hidden, weight, ids, lambda log_prob, _: log_prob.sum())
    with pytest.raises(ValueError, match="a loss without a gradient"):
        K.linear_token_loss(hidden, weight, ids, lambda log_prob, _: log_prob.detach())
