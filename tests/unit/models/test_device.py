"""Where a model runs: what is asked for by name is what one gets, or an error."""

from collections.abc import Iterator

import pytest
import torch

from fit_models.device import resolve_device, resolve_dtype, use_fast_float32_matmul


@pytest.fixture(autouse=True)
def unchanged_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_auto_takes_a_gpu_where_there_is_one(has_gpu: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert resolve_device("auto").type == ("cuda" if has_gpu else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_gpu_asked_for_by_name_is_there_or_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda:1") == torch.device("cuda:1")


def test_auto_is_exact_on_a_cpu_and_narrow_on_a_gpu():
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert resolve_dtype(torch.float64, torch.device("cpu")) == torch.float64


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype 'float8' is unknown; known: auto, float32"):
        resolve_dtype("float8", torch.device("cpu"))


def test_fast_products_are_still_fp32_or_the_switch_is_taken_back():
    before = torch.get_float32_matmul_precision()
    used = use_fast_float32_matmul()
    assert torch.get_float32_matmul_precision() == ("medium" if used else before)
    a, b = torch.randn(2, 300, 200, generator=torch.Generator().manual_seed(1)).unbind()
    product = a @ b.T
    # sums of 200 products of order one: fp32 is off by 1e-5, bf16 would be by 1e-1
    assert (product.double() - a.double() @ b.T.double()).abs().max() < 1e-4


def test_products_that_are_not_fp32_take_the_switch_back(monkeypatch: pytest.MonkeyPatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr("fit_models.device._FLOAT32_ERROR", -1.0)
    assert not use_fast_float32_matmul()
    assert torch.get_float32_matmul_precision() == before
