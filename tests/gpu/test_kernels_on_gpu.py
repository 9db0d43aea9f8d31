"""Fused operators where they really run: against float64, at awkward sizes, in every dtype.

Under `TRITON_INTERPRET=1` the same checks run on the CPU, smaller, so that this file is proved too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import fit_kernels
from fit_kernels import reference, use_backend
from support.on_gpu import (
    CAN_RUN,
    DEVICE,
    DTYPES,
    INTERPRETED,
    TOLERANCE,
    WHY_NOT,
    Replay,
    draw,
    error,
    gradients,
    in_float64,
    poisoned,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CAN_RUN, reason=WHY_NOT)]

# (tokens, rows, width): one token; a whole number of nothing; a network's own width.
SIZES = [(1, 1, 72), (37, 3, 100), *([] if INTERPRETED else [(1031, 5, 1152)])]
# Width and features: odd ones, tokens in and out, no multiple of 8, a network's own.
LAYERS = [(37, 21), (16, 72), (72, 16), *([] if INTERPRETED else [(682, 256), (1152, 3456)])]
HEADS = [(2, 2, 24), (4, 2, 36)] if INTERPRETED else [(4, 2, 36), (16, 16, 72), (24, 24, 96)]


@dataclass
class Call:
    """Arguments of an operator, and which of them get a gradient."""

    operator: str
    arguments: list[Any]
    wanted: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, module: Any, arguments: list[Any]) -> tuple[Tensor, ...]:
        """The operator of a module, its results always a tuple."""
        out = getattr(module, self.operator)(*arguments, **self.options)
        return out if isinstance(out, tuple) else (out,)


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    torch.manual_seed(0)
    use_backend("fused", DEVICE)
    yield
    use_backend("reference")


def rows_of(count: int, tokens: int) -> Tensor:
    """Unequal sequences; every row has a token where there are enough."""
    return torch.randint(count, (tokens,), device=DEVICE).sort().values


def table(count: int, width: int, vectors: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Vectors of one wide table: their rows lie apart, as a network's modulation does."""
    return draw(count, 6 * width, dtype=dtype).split(width, dim=1)[:vectors]


def modulate_call(tokens: int, rows: int, width: int, dtype: torch.dtype, norm: str) -> Call:
    shift, scale = table(rows, width, 2, dtype)
    x = draw(tokens, width, dtype=dtype) * 3 + 1
    arguments = [x, None if norm == "rms" else shift, scale, rows_of(rows, tokens), 1e-6, norm]
    return Call("layer_norm_modulate", arguments, (0, 2) if norm == "rms" else (0, 1, 2))


def gated_call(tokens: int, rows: int, width: int, dtype: torch.dtype, norm: str) -> Call:
    gate, shift, scale = table(rows, width, 3, dtype)
    x, y = (draw(tokens, width, dtype=dtype) for _ in range(2))
    row = rows_of(rows, tokens)
    arguments = [x, y, gate, shift, scale, row, 1e-6, norm]
    return Call("gated_residual_layer_norm_modulate", arguments, (0, 1, 2, 3, 4))


def swiglu_call(tokens: int, width: int, dtype: torch.dtype) -> Call:
    return Call("swiglu", [draw(tokens, 2 * width, dtype=dtype)], (0,))


def linear_call(tokens: int, width: int, features: int, dtype: torch.dtype) -> Call:
    x, weight = draw(tokens, width, dtype=dtype), draw(features, width, dtype=dtype)
    return Call("linear_fixed_tiles", [x, weight, draw(features, dtype=dtype)], ())


def rotate_call(
    tokens: int, heads: tuple[int, int, int], dtype: torch.dtype, norm: str = "layer"
) -> Call:
    queries, keys, head_dim = heads
    angle = torch.rand(23, head_dim // 2, device=DEVICE) * 6
    row = torch.randint(23, (tokens,), device=DEVICE)
    qkv = draw(tokens, queries + 2 * keys, head_dim, dtype=dtype)
    options = {"num_heads": queries, "norm": norm}
    return Call("qk_norm_rope", [qkv, angle.cos(), angle.sin(), row], (0,), options)


def step_call(tokens: int, dtype: torch.dtype) -> Call:
    channels, sequences = 16, 3
    x, memory, noise = (draw(tokens, channels) for _ in range(3))
    order = torch.randperm(2 * tokens, device=DEVICE)
    sequence = rows_of(sequences, tokens)
    velocity, rows = draw(2 * tokens, channels, dtype=dtype), draw(sequences, 8)
    arguments = [x, velocity, memory, noise, order[:tokens], order[tokens:], rows, sequence, 12]
    return Call("guided_step", arguments, (0, 1, 2, 3))


def check(call: Call, dtype: torch.dtype) -> None:
    """Results and gradients against float64; new memory is poisoned."""
    tolerance = TOLERANCE[dtype]
    leaves = [a.detach() if isinstance(a, Tensor) else a for a in call.arguments]
    exact = [in_float64(a) for a in call.arguments]
    for number in call.wanted:
        leaves[number].requires_grad_()
        exact[number].requires_grad_()
    wanted = call.run(reference, exact)
    with poisoned():
        outputs = call.run(fit_kernels, leaves)
    for out, exactly in zip(outputs, wanted, strict=True):
        assert error(out, exactly) <= tolerance, call.operator
    if not call.wanted:
        return
    incoming = [draw(*out.shape, dtype=out.dtype) for out in outputs]
    with poisoned():
        found = gradients(outputs, [leaves[n] for n in call.wanted], incoming)
    right = gradients(wanted, [exact[n] for n in call.wanted], [in_float64(g) for g in incoming])
    for number, gradient, exactly in zip(call.wanted, found, right, strict=True):
        # Where float64 says zero (a norm of one value), only rounding is left.
        if exactly.norm() > 1e-6:
            assert error(gradient, exactly) <= 3 * tolerance, (call.operator, number)


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_and_modulation_are_those_of_float64(
    size: tuple[int, int, int], dtype: torch.dtype, norm: str
):
    check(modulate_call(*size, dtype, norm), dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gated_residual_and_the_norm_after_it_are_those_of_float64(
    size: tuple[int, int, int], dtype: torch.dtype
):
    check(gated_call(*size, dtype, "layer"), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gate_of_the_mlp_is_that_of_float64(dtype):
    for tokens, width in [(1, 8), (37, 100), *([] if INTERPRETED else [(1031, 3072)])]:
        check(swiglu_call(tokens, width, dtype), dtype)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_layer_with_fixed_tiles_is_that_of_float64(layer: tuple[int, int], dtype):
    for tokens in (1, 37) if INTERPRETED else (1, 37, 1031):
        check(linear_call(tokens, *layer, dtype), dtype)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normed_and_rotated_heads_are_those_of_float64(heads, dtype):
    for tokens in (1, 7) if INTERPRETED else (1, 131):
        check(rotate_call(tokens, heads, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_guided_step_is_that_of_float64(dtype):
    for tokens in (1, 37) if INTERPRETED else (1, 37, 4099):
        check(step_call(tokens, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_a_replayed_graph_follows_its_rows_and_its_tokens(dtype):
    """Other tokens, other modulation and another assignment of rows, in the captured buffers."""
    tokens, rows, width = (37, 3, 100) if INTERPRETED else (1031, 5, 1152)
    call, other = (gated_call(tokens, rows, width, dtype, "layer") for _ in range(2))
    with torch.no_grad():
        replay = Replay(lambda: call.run(fit_kernels, call.arguments))
        for mine, new in zip(call.arguments, other.arguments, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(new)
        outputs = replay.again()
    wanted = call.run(reference, [in_float64(a) for a in other.arguments])
    for out, exactly in zip(outputs, wanted, strict=True):
        assert error(out, exactly) <= TOLERANCE[dtype]


def test_a_token_does_not_notice_how_many_stand_beside_it():
    """Bit for bit, so that a picture is the same in every pack."""
    dtype = DTYPES[-1]
    tokens, rows, width = (37, 3, 100) if INTERPRETED else (1031, 5, 1152)
    call = gated_call(tokens, rows, width, dtype, "layer")
    x, y, gate, shift, scale, row, *rest = call.arguments
    few = slice(tokens // 3, tokens // 3 + 5)
    with torch.no_grad():
        together = call.run(fit_kernels, call.arguments)
        alone = call.run(fit_kernels, [x[few], y[few], gate, shift, scale, row[few], *rest])
    for all_of_them, some in zip(together, alone, strict=True):
        assert torch.equal(all_of_them[few], some)


@pytest.mark.skipif(INTERPRETED, reason="BLAS multiplies there, and rounds rows of a tile unlike")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_linear_layer_does_not_notice_how_many_tokens_there_are(layer: tuple[int, int], dtype):
    """Bit for bit, anywhere in a pack, among others and among NaN."""
    x, *weights = linear_call(1031, *layer, dtype).arguments
    together = fit_kernels.linear_fixed_tiles(x, *weights)
    for first, count in ((0, 1), (0, 128), (5, 64), (127, 130), (700, 331), (1030, 1)):
        own = x[first : first + count].clone()
        wanted = together[first : first + count]
        for before, after in ((0, 0), (3, 0), (129, 400)):
            for filling in (1.0, torch.nan):
                others = [torch.full_like(x[:n], filling) for n in (before, after)]
                out = fit_kernels.linear_fixed_tiles(
                    torch.cat((others[0], own, others[1])), *weights
                )
                assert torch.equal(out[before : before + count], wanted), (first, before)
