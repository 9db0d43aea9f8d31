"""Gathering rows is indexing, forwards and backwards."""

import pytest
import torch

from fit_kernels import gather_rows

# Awkward on purpose: one token, a row nobody uses, many tokens of one row, an odd width.
CASES = [(1, 1, [0]), (4, 7, [2, 2, 0, 3, 2]), (3, 5, [1] * 9), (2, 1, [1, 0, 1])]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("num_rows", "width", "row"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gather_is_indexing(num_rows: int, width: int, row: list[int], dtype: torch.dtype):
    rows_RD = torch.randn(num_rows, width).to(dtype)
    assert torch.equal(gather_rows(rows_RD, torch.tensor(row)), rows_RD[row])


@pytest.mark.parametrize(("num_rows", "width", "row"), CASES)
def test_gradient_is_that_of_indexing(num_rows: int, width: int, row: list[int]):
    rows_RD = torch.randn(num_rows, width, dtype=torch.float64, requires_grad=True)
    grad_TD = torch.randn(len(row), width, dtype=torch.float64)
    (ours,) = torch.autograd.grad(gather_rows(rows_RD, torch.tensor(row)), rows_RD, grad_TD)
    (wanted,) = torch.autograd.grad(rows_RD[row], rows_RD, grad_TD)
    torch.testing.assert_close(ours, wanted)


def test_gradient_passes_finite_differences():
    rows_RD = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    row_T = torch.tensor([0, 2, 2, 0])
    assert torch.autograd.gradcheck(lambda rows: gather_rows(rows, row_T), (rows_RD,))


def test_a_row_nobody_uses_gets_no_gradient():
    rows_RD = torch.randn(3, 4, requires_grad=True)
    gather_rows(rows_RD, torch.tensor([0, 2])).sum().backward()
    assert rows_RD.grad is not None
    assert torch.equal(rows_RD.grad[1], torch.zeros(4))


def test_without_gradients_no_graph_is_made():
    rows_RD = torch.randn(2, 3, requires_grad=True)
    with torch.no_grad():
        assert not gather_rows(rows_RD, torch.tensor([1, 0])).requires_grad
    assert not gather_rows(rows_RD.detach(), torch.tensor([1, 0])).requires_grad
