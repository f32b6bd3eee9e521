from typing import Any

import minimind_kernels as K
import pytest
import torch
from minimind_kernels import backend
from minimind_kernels.rope import qk_rope_reference


def tables(head_size, device, num_positions=50):
    inverse = 1e6 ** (-torch.arange(0, head_size, 2) / head_size)
    angles = torch.arange(num_positions)[:, None] * inverse
    return angles.cos().to(device), angles.sin().to(device)


def run(op, cos, sin, positions, num_heads, num_kv_heads, **options):
    """`op` as a function of what has a gradient, with tables as wide as that."""

    def call(qkv, *norms):
        wide = torch.promote_types(qkv.dtype, torch.float32)
        return op(
            qkv, cos.to(wide), sin.to(wide), positions, num_heads, num_kv_heads, *norms, **options
        )

    return call


def test_views_and_int32_positions(device, randn, assert_as_accurate):
    positions = torch.arange(12, dtype=torch.int32, device=device)[::2]
    args = (*tables(8, device), positions, 2, 1)
    ops = [run(op, *args) for op in (K.qk_rope, qk_rope_reference)]
    ours, reference = (lambda qkv, op=op: op(qkv[:, 3:35]) for op in ops)
    assert_as_accurate(ours, reference, randn(6, 40))


def test_gradients_with_strides_of_their_own(device, randn, assert_as_accurate):
    args = (*tables(10, device), torch.arange(5, device=device), 3, 1)
    ours, reference = (
        lambda *inputs, op=op: tuple(x.transpose(0, 1) for x in run(op, *args)(*inputs))
        for op in (K.qk_rope, qk_rope_reference)
    )
    assert_as_accurate(ours, reference, randn(5, 50), randn(10), randn(10))


@pytest.mark.parametrize("position", [-1, 8, 2**31])
@pytest.mark.parametrize("norm", [False, True])
def test_a_position_outside_the_tables_is_seen(norm, position, device):
    """Numbers lie on both sides of the tables."""
    cos, sin = (t[4:12] for t in tables(8, device))
    positions = torch.tensor([7, 0, position, 3], device=device)
    qkv = torch.randn(4, 32, device=device, requires_grad=True)
    norms: Any = [torch.randn(8, device=device, requires_grad=True) for _ in range(2 * norm)]
    if device == "cpu" and backend.kernels_setting() != "triton":
        pytest.skip("PyTorch's own indexing says so")
    q, k, v = K.qk_rope(qkv, cos, sin, positions, 2, 1, *norms)
    grads = torch.autograd.grad(q.sum() + k.sum() + v.sum(), (qkv, *norms))
    for bad in (q.flatten(1), k.flatten(1), grads[0][:, :24]):
        assert bad[2].isnan().all()
        assert bad[[0, 1, 3]].isfinite().all()
    assert v.isfinite().all()
    assert grads[0][:, 24:].isfinite().all()
    assert all(grad.isnan().all() for grad in grads[1:])


def test_values_are_a_view(randn, device):
    qkv = randn(6, 32)
    _, _, v = K.qk_rope(qkv, *tables(8, device), torch.arange(6, device=device), 2, 1)
    assert v.data_ptr() == qkv[:, 24:].data_ptr()


def test_only_one_output_used(device, randn):
    qkv = randn(6, 32)
    q, _, _ = K.qk_rope(qkv, *tables(8, device), torch.arange(6, device=device), 2, 1)
    (grad,) = torch.autograd.grad(q.sum(), qkv)
    assert not grad[:, 16:].any()


@pytest.mark.parametrize("cast_before_weight", [False, True])
def test_without_a_gradient_the_bits_are_the_same(device, randn, cast_before_weight):
    qkv, norms = randn(6, 32), (randn(8), randn(8))
    args = (*tables(8, device), torch.arange(6, device=device), 2, 1)
    for weights in ((), norms):
        trained = K.qk_rope(qkv, *args, *weights, cast_before_weight=cast_before_weight)
        with torch.inference_mode():
            ours = K.qk_rope(qkv, *args, *weights, cast_before_weight=cast_before_weight)
        assert all(torch.equal(x, y) for x, y in zip(ours, trained, strict=True))


def test_the_reference_rotates_pairs_by_their_angle():
    cos, sin = tables(4, "cpu")
    q, k, v = qk_rope_reference(torch.ones(1, 12), cos, sin, torch.tensor([3]), 1, 1)
    pairs = torch.complex(torch.ones(2), torch.ones(2)) * torch.complex(cos[3], sin[3])
    torch.testing.assert_close(q[0, 0], torch.cat((pairs.real, pairs.imag)))
    torch.testing.assert_close(k[0, 0], q[0, 0])
    assert (v == 1).all()


def test_wrong_arguments_are_named():
    cos, sin = tables(8, "cpu")
    positions = torch.arange(3)
    with pytest.raises(ValueError, match=r"\[M, 32\], not \(3, 40\)"):
        K.qk_rope(torch.ones(3, 40), cos, sin, positions, 2, 1)
    with pytest.raises(ValueError, match="a position for each of 4 rows"):
        K.qk_rope(torch.ones(4, 32), cos, sin, positions, 2, 1)
    with pytest.raises(ValueError, match="both weights or none"):
        K.qk_rope(torch.ones(3, 32), cos, sin, positions, 2, 1, torch.ones(8))
    with pytest.raises(ValueError, match="the head size"):
        K.qk_rope(torch.ones(3, 32), cos, sin, positions, 2, 1, torch.ones(4), torch.ones(4))
