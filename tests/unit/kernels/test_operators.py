"""Every operator equals its formula written straight down in float64, and so do its gradients.

Dimension key: T packed tokens, R rows, D width, F MLP width, H heads, E head dim, P slab rows.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fit_kernels import (
    gated_residual_layer_norm_modulate,
    layer_norm_modulate,
    qk_norm_rope,
    swiglu,
)

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
    outs, wanted = operator(*rounded), formula(*exact)
    for out, want in zip(
        *((x,) if isinstance(x, Tensor) else x for x in (outs, wanted)), strict=True
    ):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), want, atol=TOLERANCE[dtype], rtol=0.0)


def layer_norm_64(x_TD: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x_TD - x_TD.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()


def rms_norm_64(x_TD: Tensor, eps: float = 1e-6) -> Tensor:
    return x_TD / (x_TD.square().mean(-1, keepdim=True) + eps).sqrt()


NORMS_64: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": layer_norm_64,
    "rms": rms_norm_64,
    "none": lambda x: x,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize(("t", "r", "d"), SHAPES)
def test_layer_norm_modulate(t: int, r: int, d: int, norm: str, dtype: torch.dtype):
    inputs = [3 * randn(t, d) + 1, randn(r, d), randn(r, d), torch.randint(r, (t,))]

    def formula(x: Tensor, shift: Tensor, scale: Tensor, row: Tensor) -> Tensor:
        return NORMS_64[norm](x) * (1 + scale[row]) + shift[row]

    check(functools.partial(layer_norm_modulate, norm=norm), formula, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_modulation_may_have_no_shift(dtype: torch.dtype):
    inputs = [randn(5, 8), randn(2, 8), torch.randint(2, (5,))]
    check(
        lambda x, scale, row: layer_norm_modulate(x, None, scale, row, norm="rms"),
        lambda x, scale, row: rms_norm_64(x) * (1 + scale[row]),
        inputs,
        dtype,
    )


def test_an_unknown_norm_is_refused():
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="norm 'batch' is unknown; known: layer, rms, none"):
        layer_norm_modulate(x, x, x, torch.zeros(1, dtype=torch.int64), norm="batch")


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
def test_gated_residual_layer_norm_modulate(t: int, r: int, d: int, dtype: torch.dtype):
    inputs = [2 * randn(t, d), randn(t, d), *randn(3, r, d).unbind(), torch.randint(r, (t,))]

    def formula(
        x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, row: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = x + gate[row] * y
        # the norm is of the sum as it is stored
        stored = total.to(dtype).double()
        return total, layer_norm_64(stored) * (1 + scale[row]) + shift[row]

    check(gated_residual_layer_norm_modulate, formula, inputs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("t", "f"), [(1, 1), (13, 7), (64, 128)])
def test_swiglu(t: int, f: int, dtype: torch.dtype):
    def formula(gate_up: Tensor) -> Tensor:
        gate, up = gate_up[:, :f], gate_up[:, f:]
        return gate / (1 + (-gate).exp()) * up

    check(swiglu, formula, [1.5 * randn(t, 2 * f)], dtype)


def rotated_64(x_THE: Tensor, angle_TP: Tensor, factor: float) -> Tensor:
    """Each adjacent pair is a complex number, turned by its angle."""
    pairs_THP = torch.view_as_complex(x_THE.unflatten(-1, (-1, 2)).contiguous())
    turned = pairs_THP * torch.polar(torch.full_like(angle_TP, factor), angle_TP)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def half_split_64(x_THE: Tensor, angle_TP: Tensor, factor: float) -> Tensor:
    """The same rotation of pairs that lie half a head apart."""
    first, second = x_THE.chunk(2, dim=-1)
    side_by_side = torch.stack((first, second), dim=-1).flatten(-2)
    turned = rotated_64(side_by_side, angle_TP, factor).unflatten(-1, (-1, 2))
    return torch.cat(turned.unbind(-1), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("t", "h", "g", "e", "p"), [(1, 1, 1, 4, 1), (9, 3, 3, 12, 5), (7, 4, 2, 72, 9)]
)
def test_qk_norm_rope(
    t: int,
    h: int,
    g: int,
    e: int,
    p: int,
    interleaved: bool,
    affine: int,
    norm: str,
    dtype: torch.dtype,
):
    qkv, angle_PE2 = randn(t, h + 2 * g, e), 20 * randn(p, e // 2)
    row_T = torch.randint(p, (t,))
    factor = 1.3  # a multiplier that cos and sin carry
    slab_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    cos, sin = (factor * angle_PE2.cos()).to(slab_dtype), (factor * angle_PE2.sin()).to(slab_dtype)
    weight, bias = ((0.5 * randn(h + g, e)).to(dtype) if affine > n else None for n in (0, 1))
    rounded = qkv.to(dtype)
    out = qk_norm_rope(
        rounded,
        cos,
        sin,
        row_T,
        num_heads=h,
        norm=norm,
        weight_JE=weight,
        bias_JE=bias,
        interleaved=interleaved,
    )
    qk, v = rounded.double().split((h + g, g), dim=1)
    qk = NORMS_64[norm](qk)
    qk = qk if weight is None else qk * weight.double()
    qk = qk if bias is None else qk + bias.double()
    turn = rotated_64 if interleaved else half_split_64
    q, k = turn(qk, angle_PE2[row_T], factor).split((h, g), dim=1)
    for ours, want in zip(out, (q, k, v), strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), want, atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize(("heads", "num_heads"), [(9, 4), (8, 8), (6, 0), (13, 3)])
def test_a_projection_that_is_no_queries_keys_and_values_is_refused(heads: int, num_heads: int):
    slab = torch.zeros(1, 2)
    with pytest.raises(
        ValueError, match=f"num_heads is {num_heads}; a projection of {heads} heads"
    ):
        qk_norm_rope(
            torch.zeros(1, heads, 4),
            slab,
            slab,
            torch.zeros(1, dtype=torch.int64),
            num_heads=num_heads,
            norm="none",
        )


def test_rope_turns_no_token_at_the_origin_and_keeps_lengths():
    qkv = torch.randn(6, 6, 8)
    cos, sin = torch.ones(1, 4), torch.zeros(1, 4)
    origin = torch.zeros(6, dtype=torch.int64)
    out = qk_norm_rope(qkv, cos, sin, origin, num_heads=2, norm="none")
    assert all(torch.equal(x, y) for x, y in zip(out, qkv.split(2, dim=1), strict=True))
    angle = torch.randn(6, 4)
    q, _, _ = qk_norm_rope(qkv, angle.cos(), angle.sin(), torch.arange(6), num_heads=2, norm="none")
    torch.testing.assert_close(q.norm(dim=-1), qkv[:, :2].norm(dim=-1))


def test_gradients_pass_finite_differences():
    row_T = torch.tensor([0, 1, 1, 0, 1])
    x, y = (randn(5, 6).requires_grad_() for _ in range(2))
    shift, scale = (randn(2, 6).requires_grad_() for _ in range(2))
    gradcheck = torch.autograd.gradcheck
    assert gradcheck(lambda x, b, s: layer_norm_modulate(x, b, s, row_T), (x, shift, scale))
    assert gradcheck(
        lambda x, y, g, b, s: gated_residual_layer_norm_modulate(x, y, g, b, s, row_T),
        (x, y, scale, shift, scale),
    )
    assert gradcheck(swiglu, (x,))
    qkv, angle = randn(5, 3, 4).requires_grad_(), randn(2, 2)
    weight, bias = (randn(2, 4).requires_grad_() for _ in range(2))
    for norm in ("layer", "rms", "none"):
        for interleaved in (True, False):

            def rotated(
                qkv: Tensor,
                weight: Tensor,
                bias: Tensor,
                norm: str = norm,
                interleaved: bool = interleaved,
            ) -> tuple[Tensor, ...]:
                return qk_norm_rope(
                    qkv,
                    angle.cos(),
                    angle.sin(),
                    row_T,
                    num_heads=1,
                    norm=norm,
                    weight_JE=weight,
                    bias_JE=bias,
                    interleaved=interleaved,
                )

            assert gradcheck(rotated, (qkv, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_notice_its_neighbours(dtype: torch.dtype):
    """Every operator works token by token: a part of the pack gives that part of the result."""
    x, y = torch.randn(2, 11, 16).to(dtype)
    rows, part = torch.randn(3, 4, 16).to(dtype), slice(4, 7)
    row_T = torch.randint(4, (11,))
    whole = layer_norm_modulate(x, rows[0], rows[1], row_T)[part]
    assert torch.equal(whole, layer_norm_modulate(x[part], rows[0], rows[1], row_T[part]))
    whole = gated_residual_layer_norm_modulate(x, y, rows[2], rows[0], rows[1], row_T)
    alone = gated_residual_layer_norm_modulate(
        x[part], y[part], rows[2], rows[0], rows[1], row_T[part]
    )
    assert all(torch.equal(w[part], a) for w, a in zip(whole, alone, strict=True))
