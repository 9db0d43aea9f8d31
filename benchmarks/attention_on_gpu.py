"""Attention at the mixes a server packs: every implementation there is, against padded SDPA.

`bench_attention.py --device cuda` runs it. The rate counts useful work alone: 4 L^2 H E operations
a sequence forward, 2.5 times that backward; padding and head dims padded inside a kernel count for
nothing. The padded form gets its input padded already, which flatters it.

Dimension key: T packed tokens, S sequences, N tokens of the longest, H heads, E head dim.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from ceilings import Ceilings
from measurement import Ledger, Measurement, spell_error, spell_rate
from packs import cu_seqlens_of, lengths_of
from stopwatch import Call, Stopwatch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels import attention_varlen
from fit_kernels.attention import equal_runs, use_attention

BACKENDS = (
    "fused",
    "torch-varlen",
    "grouped",
    "flash-attn-2",
    "flash-attn-3",
    "flash-attn-4",
    "xformers",
)
_PADDED = "padded SDPA"
_HEADS = ((16, 72), (24, 96))
_PACKS = ("8k", "2k", "512", "40k")
_BACKWARD_WORK = 2.5

Qkv = tuple[Tensor, Tensor, Tensor]
Attend = Callable[[Qkv], Tensor]


@dataclass(frozen=True)
class Case:
    """One pack, one shape of heads; with or without the backward pass."""

    pack: str
    heads: int
    head_dim: int
    backward: bool

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return lengths_of(self.pack)

    @property
    def name(self) -> str:
        """For the table."""
        direction = "forward + backward" if self.backward else "forward"
        return f"{direction} {self.heads} x {self.head_dim}, {sum(self.lengths)} tokens"

    @property
    def work(self) -> float:
        """Floating-point operations of one call."""
        forward = 4.0 * sum(n * n for n in self.lengths) * self.heads * self.head_dim
        return forward * (1 + _BACKWARD_WORK * self.backward)

    @property
    def num_bytes(self) -> int:
        """Of queries, keys, values and output in half precision."""
        return 4 * sum(self.lengths) * self.heads * self.head_dim * 2

    def qkv(self, device: torch.device, dtype: torch.dtype) -> Qkv:
        """Queries, keys and values as the network hands them over: parts of one tensor."""
        size = (sum(self.lengths), 3 * self.heads, self.head_dim)
        parts = torch.randn(size, device=device, dtype=dtype).split(self.heads, dim=1)
        q, k, v = (part.requires_grad_(self.backward) for part in parts)
        return q, k, v


def cases(toy: bool) -> Iterator[Case]:
    """What matters most first."""
    for backward in (False, True):
        for pack in ("toy",) if toy else _PACKS:
            for heads, head_dim in ((2, 24),) if toy else _HEADS:
                yield Case(pack, heads, head_dim, backward)


def varlen(case: Case, device: torch.device) -> Attend:
    """The implementation in use, over the pack."""
    lengths = case.lengths
    cu_seqlens, runs = cu_seqlens_of(lengths, device), equal_runs(lengths)
    return lambda qkv: attention_varlen(*qkv, cu_seqlens, runs, max(lengths))


def pad(qkv: Qkv, lengths: list[int]) -> Qkv:
    """[T, H, E] to [S, H, N, E], zeros behind every sequence; leaves of their own."""
    q, k, v = (
        torch.nn.utils.rnn.pad_sequence(list(x.detach().split(lengths)), batch_first=True)
        .transpose(1, 2)
        .requires_grad_(x.requires_grad)
        for x in qkv
    )
    return q, k, v


def padded(case: Case, device: torch.device) -> Attend:
    """SDPA over padded sequences with a mask of the keys that exist."""
    lengths = torch.tensor(case.lengths, device=device)
    mask_SN = torch.arange(max(case.lengths), device=device) < lengths[:, None]
    return lambda qkv: F.scaled_dot_product_attention(*qkv, attn_mask=mask_SN[:, None, None])


def call_of(attend: Attend, qkv: Qkv, backward: bool) -> Call:
    """One evaluation, with its gradients if asked."""
    if not backward:
        return lambda: attend(qkv)
    gradient = torch.randn_like(attend(qkv).detach())
    return lambda: torch.autograd.grad(attend(qkv), qkv, gradient)


def time_way(case: Case, way: str, stopwatch: Stopwatch, into: Measurement) -> None:
    """Time a case one way, or write down why not."""
    device = stopwatch.device
    dtype = torch.bfloat16 if stopwatch.on_gpu else torch.float32
    try:
        if way != _PADDED:
            use_attention(way)
        attend = (padded if way == _PADDED else varlen)(case, device)
        count = stopwatch.calls_for(case.num_bytes)
        sets = [case.qkv(device, dtype) for _ in range(count)]
        if way == _PADDED:
            sets = [pad(qkv, case.lengths) for qkv in sets]
        with torch.set_grad_enabled(case.backward):
            calls = [call_of(attend, qkv, case.backward) for qkv in sets]
            timing = stopwatch.time(calls)
    except Exception as error:  # whatever a library raises; the other ways still count
        into.missing[way] = spell_error(error)
        return
    finally:
        use_attention("auto")
    into.seconds[way], into.best_seconds[way] = timing.median, timing.best
    into.methods[way] = timing.method


def measure(
    toy: bool, stopwatch: Stopwatch, ceilings: Ceilings, ledger: Ledger, deadline: float
) -> None:
    """Every case every way, while the time lasts; a row names the fastest."""
    for case in cases(toy):
        into = Measurement("attention", case.name, "fused", _PADDED, case.work, "FLOP")
        into.ceilings = {"of product": ceilings.product}
        for way in (_PADDED, *BACKENDS):
            if time.monotonic() > deadline:
                into.missing[way] = "out of time"
            else:
                time_way(case, way, stopwatch, into)
        if into.seconds:
            fastest = min(into.seconds, key=into.seconds.__getitem__)
            into.note = f"fastest: {fastest}, {spell_rate(into.rate(fastest), into.work_unit)}"
        ledger.put(into)
