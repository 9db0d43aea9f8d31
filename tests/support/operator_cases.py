"""Calls of every registered operator, over awkward sizes, and of its reference.

Dimension key: T packed tokens, R rows, D width, F MLP width, H query heads, G key heads, E head
dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fit_kernels import reference, registered
from fit_kernels.ternary_weights import pack_ternary


@dataclass(frozen=True)
class OperatorCase:
    """One call.

    Attributes:
        name: unique.
        operator: the registered form.
        definition: the reference, called with the same arguments.
        arguments: positional.
        keywords: by name.
        differentiable: positions of arguments that get gradients.
        rounded: positions of arguments that have none, and are rounded to the dtype like those.
    """

    name: str
    operator: Callable[..., Any]
    definition: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    differentiable: tuple[int | str, ...]
    rounded: tuple[int | str, ...] = ()

    def run(self, registered_form: bool, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs and gradients, with inputs rounded to `dtype` first.

        The registered form computes in `dtype`, the definition in float64 on the same values. The
        gradients that come from outside are a fixed function of the outputs' shapes.
        """
        compute = dtype if registered_form else torch.float64
        leaves: list[Tensor] = []

        def prepared(key: int | str, value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            # Tables and rows stay fp32, as in serving.
            fixed = key not in (*self.differentiable, *self.rounded)
            stays = fixed or value.dtype == torch.float32
            rounded = value if stays else value.to(dtype)
            rounded = rounded.double() if not registered_form else rounded
            rounded = rounded if stays else rounded.to(compute)
            if key in self.differentiable:
                rounded = rounded.detach().requires_grad_()
                leaves.append(rounded)
            return rounded

        arguments = [prepared(i, value) for i, value in enumerate(self.arguments)]
        keywords = {k: prepared(k, value) for k, value in self.keywords.items()}
        outs = (self.operator if registered_form else self.definition)(*arguments, **keywords)
        outs = [outs] if isinstance(outs, Tensor) else list(outs)
        grads = [_outer_gradient(out) for out in outs]
        gradients = torch.autograd.grad(outs, leaves, grads) if leaves else ()
        return [out.detach() for out in outs], list(gradients)


def _outer_gradient(out: Tensor) -> Tensor:
    values = torch.sin(torch.arange(out.numel(), device=out.device) * 0.7 + 0.3)
    return values.view(out.shape).to(out.dtype)


def operator_cases(small: bool = False) -> Iterator[OperatorCase]:
    """All cases; `small` leaves out what only larger tiles make interesting.

    Tensors whose rounding is part of the case are float64; those that are fp32 in serving are fp32.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def rows(count: int, of: int) -> Tensor:
        return torch.randint(of, (count,), generator=generator)

    shapes = [(1, 1, 3), (13, 4, 7), (5, 3, 48)]
    shapes += [] if small else [(7, 2, 1023), (3, 2, 1152), (67, 64, 33), (2, 2, 1024)]
    for t, r, d in shapes:
        table = randn(r, 6 * d + 16)  # one wide table: rows are views with its stride
        shift, scale, gate = table[:, :d], table[:, d : 2 * d], table[:, 2 * d : 3 * d]
        row = rows(t, r)
        for norm in ("layer", "rms"):
            yield OperatorCase(
                f"layer_norm_modulate-{t}x{d}-{norm}",
                registered.layer_norm_modulate,
                reference.layer_norm_modulate,
                (2 * randn(t, d) + 0.5, shift, scale, row, 1e-6, norm),
                {},
                (0, 1, 2),
            )
            yield OperatorCase(
                f"gated_residual_layer_norm_modulate-{t}x{d}-{norm}",
                registered.gated_residual_layer_norm_modulate,
                reference.gated_residual_layer_norm_modulate,
                (randn(t, d), randn(t, d), gate, shift, scale, row, 1e-6, norm),
                {},
                (0, 1, 2, 3, 4),
            )
        yield OperatorCase(
            f"layer_norm_modulate-{t}x{d}-no-shift",
            registered.layer_norm_modulate,
            reference.layer_norm_modulate,
            (randn(t, d), None, scale, row, 1e-6, "rms"),
            {},
            (0, 2),
        )
    for t, f in [(1, 1), (13, 7), *([] if small else [(67, 170), (5, 1030)])]:
        yield OperatorCase(
            f"swiglu-{t}x{f}", registered.swiglu, reference.swiglu, (randn(t, 2 * f),), {}, (0,)
        )
    shapes = [(1, 1, 1), (13, 7, 5)]
    shapes += [] if small else [(67, 682, 16), (5, 1152, 130), (130, 16, 64)]
    for t, d, f in shapes:
        for bias in (randn(f), None):
            yield OperatorCase(
                f"linear_fixed_tiles-{t}x{d}x{f}-{bias is not None}",
                registered.linear_fixed_tiles,
                reference.linear_fixed_tiles,
                (randn(t, d), randn(f, d) * d**-0.5, bias),
                {},
                (),
                (0, 1, 2),
            )
    yield from _ternary_products(randn, generator, small)
    yield from _rotations(randn, rows, small)
    yield from _steps(randn, small)


def _ternary_products(
    randn: Callable[..., Tensor], generator: torch.Generator, small: bool
) -> Iterator[OperatorCase]:
    shapes = [(1, 1, 4), (13, 7, 12)]
    shapes += [] if small else [(67, 682, 16), (5, 1152, 132), (130, 16, 64), (17, 96, 512)]
    for t, d, f in shapes:
        values = torch.randint(-1, 2, (f, d), generator=generator)
        for bias in (randn(f), None):
            yield OperatorCase(
                f"ternary_linear-{t}x{d}x{f}-{bias is not None}",
                registered.ternary_linear,
                reference.ternary_linear,
                (randn(t, d), pack_ternary(values), -0.7 * torch.ones(1).double() * d**-0.5, bias),
                {},
                (),
                (0, 2, 3),
            )


def _rotations(
    randn: Callable[..., Tensor], rows: Callable[[int, int], Tensor], small: bool
) -> Iterator[OperatorCase]:
    shapes = [(1, 1, 1, 4), (3, 2, 2, 12)]
    shapes += [] if small else [(3, 4, 2, 16), (2, 3, 3, 64), (3, 16, 16, 72), (2, 3, 1, 96)]
    shapes += [] if small else [(2, 2, 2, 128)]
    for t, h, g, e in shapes:
        angle = 20 * randn(5, e // 2).float()
        for norm, affine, interleaved in (
            ("layer", 0, True),
            ("layer", 2, False),
            ("rms", 1, True),
            ("none", 0, False),
        ):
            weight, bias = (randn(h + g, e) if affine > n else None for n in (0, 1))
            yield OperatorCase(
                f"qk_norm_rope-{t}x{h}+{g}x{e}-{norm}-{affine}-{interleaved}",
                registered.qk_norm_rope,
                reference.qk_norm_rope,
                (randn(t, h + 2 * g, e), 1.3 * angle.cos(), 1.3 * angle.sin(), rows(t, 5)),
                {
                    "num_heads": h,
                    "norm": norm,
                    "weight_JE": weight,
                    "bias_JE": bias,
                    "interleaved": interleaved,
                },
                (0, *(("weight_JE", "bias_JE")[:affine])),
            )


def _steps(randn: Callable[..., Tensor], small: bool) -> Iterator[OperatorCase]:
    for lengths, channels, guided in (([1], 4, 3), ([4, 1, 2], 16, 12), ([3, 3], 5, 5)):
        branches = [2 - number % 2 for number in range(len(lengths))]
        starts = [
            sum(n * b for n, b in zip(lengths[:i], branches[:i], strict=True))
            for i in range(len(lengths))
        ]
        conditional = torch.cat([s + torch.arange(n) for s, n in zip(starts, lengths, strict=True)])
        shifts = torch.tensor([n * (b - 1) for n, b in zip(lengths, branches, strict=True)])
        counts = torch.tensor(lengths)
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        total = sum(n * b for n, b in zip(lengths, branches, strict=True)) + 3  # padding at the end
        state = [randn(len(sequence), channels).float() for _ in range(3)]
        for noise in (True,) if small else (True, False):
            yield OperatorCase(
                f"guided_step-{sum(lengths)}x{channels}-{noise}",
                registered.guided_step,
                reference.guided_step,
                (
                    state[0],
                    randn(total, channels),
                    state[1],
                    state[2] if noise else None,
                    conditional,
                    conditional + shifts[sequence],
                    randn(len(lengths), 8).float(),
                    sequence,
                    guided,
                ),
                {},
                (0, 1, 2, *((3,) if noise else ())),
            )
