"""Rows of heads as rotary pairs in registers: how they are read, normalised, turned and written.

A head of E values is E/2 pairs; a tile holds the first values and the second values of a piece of
the pairs, for all heads of one token. Interleaved pairs lie side by side in memory and are read as
they lie, then taken apart in registers (even and odd pointers would compile to scalar loads).

Dimension key: J heads of a tile, C pairs of a piece, E head dim.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
# Kernels are written in Triton's language; a type checker takes them for Python.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_pairs(
    base_J, keep_J, FIRST: tl.constexpr, C: tl.constexpr, E: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """First and second values [J, C] of pairs FIRST .. FIRST + C, fp32; zeros past the head."""
    if INTERLEAVED:
        cols = 2 * FIRST + tl.arange(0, 2 * C)
        if 2 * FIRST + 2 * C <= E:
            keep = keep_J[:, None]
        else:
            keep = keep_J[:, None] & (cols < E)[None, :]
        both = tl.load(base_J[:, None] + cols[None, :], mask=keep, other=0.0).to(tl.float32)
        return tl.split(tl.reshape(both, (both.shape[0], C, 2)))
    else:
        cols = FIRST + tl.arange(0, C)
        if FIRST + C <= E // 2:
            keep = keep_J[:, None]
        else:
            keep = keep_J[:, None] & (cols < E // 2)[None, :]
        source = base_J[:, None] + cols[None, :]
        first = tl.load(source, mask=keep, other=0.0).to(tl.float32)
        second = tl.load(source + E // 2, mask=keep, other=0.0).to(tl.float32)
        return first, second


@triton.jit
def store_pairs(
    base_J,
    keep_J,
    first,
    second,
    FIRST: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Write what `load_pairs` reads."""
    dtype = base_J.dtype.element_ty
    if INTERLEAVED:
        cols = 2 * FIRST + tl.arange(0, 2 * C)
        if 2 * FIRST + 2 * C <= E:
            keep = keep_J[:, None]
        else:
            keep = keep_J[:, None] & (cols < E)[None, :]
        both = tl.interleave(first, second)
        tl.store(base_J[:, None] + cols[None, :], both.to(dtype), mask=keep)
    else:
        cols = FIRST + tl.arange(0, C)
        if FIRST + C <= E // 2:
            keep = keep_J[:, None]
        else:
            keep = keep_J[:, None] & (cols < E // 2)[None, :]
        target = base_J[:, None] + cols[None, :]
        tl.store(target, first.to(dtype), mask=keep)
        tl.store(target + E // 2, second.to(dtype), mask=keep)


@triton.jit
def load_turn(cos_ptr, sin_ptr, row, FIRST: tl.constexpr, C: tl.constexpr, E: tl.constexpr):
    """Cosine and sine [1, C] of pairs FIRST .. FIRST + C of a row of the rotary slab."""
    pair = FIRST + tl.arange(0, C)
    at = row * (E // 2) + pair
    keep = pair < E // 2
    cos = tl.load(cos_ptr + at, mask=keep, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, mask=keep, other=0.0).to(tl.float32)
    return cos[None, :], sin[None, :]


@triton.jit
def normalise(
    fa, sa, fb, sb, eps, A: tl.constexpr, B: tl.constexpr, E: tl.constexpr, NORM: tl.constexpr
):
    """Both pieces of every head over its root mean square, after its mean where NORM is "layer".

    Returns the four tiles and the reciprocal deviation [J]. Values past the head stay zero.
    """
    if NORM == "layer":
        mean_J = (tl.sum(fa, 1) + tl.sum(sa, 1) + tl.sum(fb, 1) + tl.sum(sb, 1)) / E
        in_a = (tl.arange(0, A) < E // 2)[None, :]
        in_b = (A + tl.arange(0, B) < E // 2)[None, :]
        fa = tl.where(in_a, fa - mean_J[:, None], 0.0)
        sa = tl.where(in_a, sa - mean_J[:, None], 0.0)
        fb = tl.where(in_b, fb - mean_J[:, None], 0.0)
        sb = tl.where(in_b, sb - mean_J[:, None], 0.0)
    square_J = tl.sum(fa * fa, 1) + tl.sum(sa * sa, 1) + tl.sum(fb * fb, 1) + tl.sum(sb * sb, 1)
    rstd_J = 1.0 / tl.sqrt(square_J / E + eps)
    scale = rstd_J[:, None]
    return fa * scale, sa * scale, fb * scale, sb * scale, rstd_J


@triton.jit
def normalise_backward(
    fa,
    sa,
    fb,
    sb,
    rstd_J,
    gfa,
    gsa,
    gfb,
    gsb,
    A: tl.constexpr,
    B: tl.constexpr,
    E: tl.constexpr,
    NORM: tl.constexpr,
):
    """Gradient of what was normalised, from the normalised values and their gradient."""
    along_J = (
        tl.sum(fa * gfa, 1) + tl.sum(sa * gsa, 1) + tl.sum(fb * gfb, 1) + tl.sum(sb * gsb, 1)
    ) / E
    common_J = along_J * 0.0
    if NORM == "layer":
        common_J = (tl.sum(gfa, 1) + tl.sum(gsa, 1) + tl.sum(gfb, 1) + tl.sum(gsb, 1)) / E
    along, common, scale = along_J[:, None], common_J[:, None], rstd_J[:, None]
    return (
        (gfa - common - fa * along) * scale,
        (gsa - common - sa * along) * scale,
        (gfb - common - fb * along) * scale,
        (gsb - common - sb * along) * scale,
    )
