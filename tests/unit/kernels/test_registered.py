"""The registered operators: torch's own checks, the reference's numbers, visible to a compiler.

Without a GPU and outside the interpreter they run the reference, so what is tested here is all that
stands around the kernels: schemas, fakes, and the gradients written by hand.
"""

import pytest
import torch
from torch import Tensor

from fit_kernels import registered
from support.operator_cases import OperatorCase, operator_cases

CASES = list(operator_cases())
SMALL = list(operator_cases(small=True))
# Gradients are sums of up to 1152 products of values of order one to ten.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_and_gradients_are_those_of_the_reference(case: OperatorCase, dtype: torch.dtype):
    # fp32 tables (angles, sampler rows) meet float64 tokens in one of the two runs only
    outs, gradients = case.run(True, dtype)
    wanted_outs, wanted_gradients = case.run(False, dtype)
    atol = TOLERANCE[dtype] if "guided_step" not in case.name else TOLERANCE[torch.float32]
    for ours, want in zip(outs + gradients, wanted_outs + wanted_gradients, strict=True):
        torch.testing.assert_close(ours.double(), want, atol=atol, rtol=1e-4)


def checked_call(case: OperatorCase) -> tuple:
    """A case's operator and arguments as torch's dispatcher takes them."""
    name = case.name.partition("-")[0]
    operator = getattr(torch.ops.fit_kernels, name).default
    values = list(case.arguments)
    if name == "qk_norm_rope":
        k = case.keywords
        values += [k["num_heads"], k["norm"], 1e-6, k["weight_JE"], k["bias_JE"], k["interleaved"]]
        gradients = (0, 7, 8)
    else:
        gradients = case.differentiable
    prepared = [
        v.float().requires_grad_(i in gradients)
        if isinstance(v, Tensor) and v.is_floating_point()
        else v
        for i, v in enumerate(values)
    ]
    return operator, tuple(prepared)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_torch_finds_nothing_wrong_with_an_operator(case: OperatorCase):
    operator, arguments = checked_call(case)
    torch.library.opcheck(operator, arguments)


BACKWARD_CALLS = {
    "norm_modulate_backward": lambda r: (r(5, 8), r(5, 8), r(2, 8), ROW, 1e-6, "layer"),
    "gated_norm_modulate_backward": lambda r: (
        *(r(5, 8) for _ in range(3)),
        *(r(2, 8) for _ in range(2)),
        ROW,
        1e-6,
        "rms",
    ),
    "row_sums": lambda r: (r(5, 8), r(5, 8), r(5), r(5), ROW, 2),
    "swiglu_backward": lambda r: (r(5, 8), r(5, 4)),
    "qk_norm_rope_backward": lambda r: (
        r(5, 4, 4),
        r(5, 2, 4),
        r(5, 1, 4),
        None,
        r(2, 2),
        r(2, 2),
        ROW,
        "layer",
        1e-6,
        r(3, 4),
        None,
        True,
    ),
    "guided_step_backward": lambda r: (
        r(5, 4),
        r(5, 4),
        r(10, 4),
        torch.arange(5),
        torch.arange(5) + 5,
        r(2, 8),
        ROW,
        3,
    ),
}
ROW = torch.tensor([0, 1, 1, 0, 1])


@pytest.mark.parametrize("name", BACKWARD_CALLS)
def test_torch_finds_nothing_wrong_with_a_gradient(name: str):
    operator = getattr(torch.ops.fit_kernels, name).default
    torch.library.opcheck(operator, BACKWARD_CALLS[name](torch.randn))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
def test_a_compiler_sees_through_the_operators_in_one_graph():
    """Full graph, other numbers of tokens without a new one, and the same gradients."""

    def block(x: Tensor, qkv_weight: Tensor, rows: Tensor, row: Tensor, angle: Tensor) -> Tensor:
        normed = registered.layer_norm_modulate(x, rows[0], rows[1], row, 1e-6, "layer")
        qkv = (normed @ qkv_weight).unflatten(-1, (6, 4))
        q, k, v = registered.qk_norm_rope(
            qkv, angle.cos(), angle.sin(), row, num_heads=2, norm="layer", eps=1e-6
        )
        y = (q * k + v).flatten(1)
        x, normed = registered.gated_residual_layer_norm_modulate(
            x, y, rows[2], rows[0], rows[1], row, 1e-6, "layer"
        )
        return x + registered.swiglu(torch.cat((normed, normed), 1))

    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_tokens in (5, 9, 14):
        x = torch.randn(num_tokens, 8, requires_grad=True)
        weight, rows = (
            torch.randn(8, 24, requires_grad=True),
            torch.randn(3, 2, 8, requires_grad=True),
        )
        row, angle = torch.randint(2, (num_tokens,)), torch.randn(2, 2)
        wanted = block(x, weight, rows, row, angle)
        out = compiled(x, weight, rows, row, angle)
        torch.testing.assert_close(out, wanted)
        ours, theirs = (
            torch.autograd.grad(o.square().sum(), (x, weight, rows)) for o in (out, wanted)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
