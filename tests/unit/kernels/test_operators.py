"""Every operator equals its formula written straight down in float64, and so do its gradients.

Dimension key: T packed tokens, R rows, D width, F MLP width, H heads, E head dim, P slab rows.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fit_kernels import gated_residual, layer_norm_modulate, qk_norm_rope, swiglu

# One token, an odd width, fewer tokens than rows: (T, R, D).
SHAPES = [(1, 1, 3), (13, 4, 7), (2, 5, 33), (64, 3, 48)]
# Of values of order one to ten: fp32 rounds at 6e-8, bf16 at 4e-3, each a few times over.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 8e-2}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def check(operator: Callable, formula: Callable, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Compare on the values the dtype can hold, so that only the operator's own rounding counts."""
    rounded = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    exact = [x.double() if x.is_floating_point() else x for x in rounded]
    out = operator(*rounded)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), formula(*exact), atol=TOLERANCE[dtype], rtol=0.0)


def layer_norm_64(x_TD: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x_TD - x_TD.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "r", "d"), SHAPES)
def test_layer_norm_modulate(t: int, r: int, d: int, dtype: torch.dtype):
    inputs = [3 * randn(t, d) + 1, randn(r, d), randn(r, d), torch.randint(r, (t,))]

    def formula(x: Tensor, shift: Tensor, scale: Tensor, row: Tensor) -> Tensor:
        return layer_norm_64(x) * (1 + scale[row]) + shift[row]

    check(layer_norm_modulate, formula, inputs, dtype)


def test_eps_keeps_a_constant_token_finite():
    x_TD = torch.full((2, 8), 5.0)
    zero_RD = torch.zeros(1, 8)
    out = layer_norm_modulate(x_TD, zero_RD + 2, zero_RD, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(out, torch.full((2, 8), 2.0))
    # Small tokens tell 1e-6 from 1e-5.
    x_TD = 1e-3 * torch.randn(4, 16)
    out = layer_norm_modulate(x_TD, zero := torch.zeros(1, 16), zero, torch.zeros(4).long())
    torch.testing.assert_close(out.double(), layer_norm_64(x_TD.double()), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "r", "d"), SHAPES)
def test_gated_residual(t: int, r: int, d: int, dtype: torch.dtype):
    inputs = [randn(t, d), randn(t, d), randn(r, d), torch.randint(r, (t,))]
    check(gated_residual, lambda x, y, gate, row: x + gate[row] * y, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "f"), [(1, 1), (13, 7), (64, 128)])
def test_swiglu(t: int, f: int, dtype: torch.dtype):
    inputs = [2 * randn(t, f), randn(t, f)]
    check(swiglu, lambda gate, up: gate / (1 + (-gate).exp()) * up, inputs, dtype)


def rotated_64(x_THE: Tensor, angle_TP: Tensor, factor: float) -> Tensor:
    """Each adjacent pair is a complex number, turned by its angle."""
    pairs_THP = torch.view_as_complex(x_THE.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs_THP * torch.polar(torch.full_like(angle_TP, factor), angle_TP)[:, None]
    return torch.view_as_real(turned).flatten(-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(("t", "h", "e", "p"), [(1, 1, 4, 1), (9, 3, 12, 5), (31, 2, 72, 40)])
def test_qk_norm_rope(t: int, h: int, e: int, p: int, qk_norm: bool, dtype: torch.dtype):
    qkv, angle_PE2 = randn(t, 3, h, e), 20 * randn(p, e // 2)
    row_T = torch.randint(p, (t,))
    factor = 1.3  # a multiplier that cos and sin carry
    slab_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (factor * angle_PE2.cos()).to(slab_dtype), (factor * angle_PE2.sin()).to(slab_dtype)
    rounded = qkv.to(dtype)
    out = qk_norm_rope(rounded, cos, sin, row_T, qk_norm=qk_norm)
    q, k, v = rounded.double().unbind(1)
    q, k = (layer_norm_64(x) if qk_norm else x for x in (q, k))
    wanted = (*(rotated_64(x, angle_PE2[row_T], factor) for x in (q, k)), v)
    for ours, want in zip(out, wanted, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), want, atol=TOLERANCE[dtype], rtol=0.0)


def test_rope_turns_no_token_at_the_origin_and_keeps_lengths():
    qkv = torch.randn(6, 3, 2, 8)
    cos, sin = torch.ones(1, 4), torch.zeros(1, 4)
    origin = torch.zeros(6, dtype=torch.int64)
    q, k, v = qk_norm_rope(qkv, cos, sin, origin, qk_norm=False)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), qkv.unbind(1), strict=True))
    angle = torch.randn(6, 4)
    q, _, _ = qk_norm_rope(qkv, angle.cos(), angle.sin(), torch.arange(6), qk_norm=False)
    torch.testing.assert_close(q.norm(dim=-1), qkv[:, 0].norm(dim=-1))


def test_gradients_pass_finite_differences():
    row_T = torch.tensor([0, 1, 1, 0, 1])
    x, y = (randn(5, 6).requires_grad_() for _ in range(2))
    shift, scale = (randn(2, 6).requires_grad_() for _ in range(2))
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(lambda x, b, s: layer_norm_modulate(x, b, s, row_T), (x, shift, scale))
    assert gradcheck(lambda x, y, g: gated_residual(x, y, g, row_T), (x, y, scale))
    assert gradcheck(swiglu, (x, y))
    qkv, angle = randn(5, 3, 1, 4).requires_grad_(), randn(2, 2)
    for qk_norm in (True, False):

        def rotated(qkv: Tensor, qk_norm: bool = qk_norm) -> tuple[Tensor, ...]:
            return qk_norm_rope(qkv, angle.cos(), angle.sin(), row_T, qk_norm=qk_norm)

        assert gradcheck(rotated, (qkv,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_notice_its_neighbours(dtype: torch.dtype):
    """Every operator works token by token: a part of the pack gives that part of the result."""
    x, y = torch.randn(2, 11, 16).to(dtype)
    rows, part = torch.randn(3, 4, 16).to(dtype), slice(4, 7)
    row_T = torch.randint(4, (11,))
    whole = layer_norm_modulate(x, rows[0], rows[1], row_T)[part]
    assert torch.equal(whole, layer_norm_modulate(x[part], rows[0], rows[1], row_T[part]))
    whole = gated_residual(x, y, rows[2], row_T)[part]
    assert torch.equal(whole, gated_residual(x[part], y[part], rows[2], row_T[part]))
