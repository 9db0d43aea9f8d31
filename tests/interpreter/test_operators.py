"""Every Triton kernel, in Triton's interpreter, against the definition in float64.

fp32 and fp16 only: the interpreter's bfloat16 arithmetic is wrong without a word. bfloat16 is
proved on a GPU (tests/gpu) and by what ahead-of-time compilation shows of the code.
"""

import pytest
import torch

from fit_kernels import registered, use_backend
from fit_kernels.backend import current_backend
from fit_kernels.fused import row_sums as fused_row_sums
from fit_kernels.launch import interpreting
from fit_kernels.reference_backward import row_sums
from support.operator_cases import OperatorCase, operator_cases
from support.poison import poison_new_memory

CASES = list(operator_cases())
# Outputs are of order ten, gradients of modulation rows sums over up to 67 tokens. fp32 keeps 24
# bits of them, fp16 11; inputs are the same rounded values on both sides.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2}


def test_this_process_interprets():
    assert interpreting()
    before = current_backend()
    use_backend("fused")
    assert current_backend() == "fused"
    use_backend(before)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_kernel_and_its_gradients_equal_the_definition(
    case: OperatorCase, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    poison_new_memory(monkeypatch)
    outs, gradients = case.run(True, dtype)
    wanted_outs, wanted_gradients = case.run(False, dtype)
    for ours, want in zip(outs + gradients, wanted_outs + wanted_gradients, strict=True):
        assert torch.isfinite(ours).all()
        atol = TOLERANCE[dtype] * max(1.0, float(want.abs().max()) / 8)
        torch.testing.assert_close(ours.double(), want, atol=atol, rtol=0.0)


@pytest.mark.parametrize("num_rows", [1, 3, 64])
def test_sums_by_row_cover_every_token_once_in_any_order(num_rows: int):
    generator = torch.Generator().manual_seed(num_rows)
    grad, other = torch.randn(2, 83, 130, generator=generator)
    row = torch.randint(num_rows, (83,), generator=generator)
    row[row == 1] = 0  # a row nobody uses sums to zero
    ours = fused_row_sums.row_sums(grad, other, None, None, row, num_rows)
    wanted = row_sums(grad.double(), other.double(), None, None, row, num_rows)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, atol=5e-5, rtol=0.0)


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.name)
def test_the_same_input_gives_the_same_bits(case: OperatorCase):
    once, again = (case.run(True, torch.float32) for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_norm_that_no_kernel_has_is_refused():
    x, row = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    for norm in ("none", "batch"):
        with pytest.raises(ValueError, match=f"norm '{norm}' is not fused with a modulation"):
            registered.layer_norm_modulate(x, x, x, row, 1e-6, norm)
    qkv, slab = torch.zeros(1, 3, 4), torch.zeros(1, 2)
    with pytest.raises(ValueError, match="norm 'batch' is unknown; known: layer, rms, none"):
        registered.qk_norm_rope(qkv, slab, slab, row, num_heads=1, norm="batch")
