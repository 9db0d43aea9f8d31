"""What "auto" means, and that the fast fp32 path is fp32."""

from __future__ import annotations

import pytest
import torch

from fit_models.device import (
    prefers_bfloat16,
    resolve_device,
    resolve_dtype,
    use_fast_float32_matmul,
)


def test_auto_takes_what_is_there() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert resolve_dtype(torch.float64, torch.device("cpu")) == torch.float64


@pytest.mark.parametrize(
    ("is_faster", "expected"), [(True, torch.bfloat16), (False, torch.float32)]
)
def test_auto_takes_bfloat16_on_a_cpu_that_is_faster_with_it(
    is_faster: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fit_models.device.prefers_bfloat16", lambda: is_faster)
    assert resolve_dtype("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("share", "expected"), [(1e-9, False), (1e9, True)])
def test_bfloat16_is_judged_by_a_product_with_a_margin(
    share: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr("fit_models.device._BFLOAT16_SHARE", share)
    monkeypatch.setattr("fit_models.device._has_bfloat16_products", lambda: True)
    assert prefers_bfloat16.__wrapped__() is expected
    assert torch.get_float32_matmul_precision() == before
    monkeypatch.setattr("fit_models.device._has_bfloat16_products", lambda: False)
    assert not prefers_bfloat16.__wrapped__()


def test_unknown_or_absent_is_named() -> None:
    with pytest.raises(ValueError, match="dtype 'int7' is unknown; known: auto, float32, bfloat16"):
        resolve_dtype("int7", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            resolve_device("cuda")


def test_the_fast_path_is_taken_only_where_it_is_exact() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        taken = use_fast_float32_matmul()
        assert torch.get_float32_matmul_precision() == ("medium" if taken else before)
        a, b = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), atol=1e-4, rtol=0.0)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_a_gpu_is_taken_or_refused_by_what_torch_finds(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert resolve_device("auto").type == ("cuda" if has_gpu else "cpu")
    assert resolve_device("cpu").type == "cpu"
    if has_gpu:
        assert resolve_device("cuda:1") == torch.device("cuda:1")
    else:
        with pytest.raises(ValueError, match="device is 'cuda', but torch finds no GPU here"):
            resolve_device("cuda")


def test_products_that_are_not_fp32_take_the_switch_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr("fit_models.device._FLOAT32_ERROR", -1.0)
    try:
        assert not use_fast_float32_matmul()
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision(before)
