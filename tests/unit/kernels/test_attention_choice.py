"""The choice of attention: by name it loads or raises; left alone it says what it took and why."""

from collections.abc import Iterator

import pytest
import torch

from fit_kernels import attention_varlen, use_attention
from fit_kernels.attention import choice, chosen_attention, current_attention, obstacles
from fit_kernels.attention.implementation import flash_refusal

CPU = torch.device("cpu")


@pytest.fixture
def choosing() -> Iterator[None]:
    before = current_attention()
    yield
    use_attention(before)


def test_an_unknown_attention_is_refused_by_name():
    with pytest.raises(ValueError, match="attention 'flash' is unknown; known: auto, grouped, tor"):
        use_attention("flash")


@pytest.mark.usefixtures("choosing")
@pytest.mark.parametrize("name", ["flash-attn-2", "flash-attn-3", "flash-attn-4", "xformers"])
def test_what_is_asked_for_by_name_loads_or_raises(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fit_kernels.attention.implementation.find_spec", lambda module: None)
    package = name.removesuffix("-2")
    with pytest.raises(ValueError, match=f"'{name}' cannot run: {package} is not installed"):
        use_attention(name)
    assert current_attention() == "auto"


@pytest.mark.usefixtures("choosing")
def test_what_was_asked_for_by_name_refuses_what_it_cannot_take():
    use_attention("torch-varlen")
    q, k, v = torch.randn(3, 5, 2, 8)
    with pytest.raises(ValueError, match="'torch-varlen': device is cpu; it must be cuda"):
        attention_varlen(q, k, v, torch.tensor([0, 5], dtype=torch.int32), [(0, 1, 5)], 5)


def test_flash_attention_says_which_value_is_wrong_and_what_would_do():
    cuda = torch.device("cuda")
    refusals = [
        flash_refusal(dtype, cuda, head_dim)
        for dtype, head_dim in ((torch.float32, 64), (torch.bfloat16, 36), (torch.float16, 264))
    ]
    assert refusals[0] == "dtype is torch.float32; it must be float16 or bfloat16"
    assert refusals[1] == "head_dim is 36; it must be a multiple of 8, at most 256"
    assert refusals[2] == "head_dim is 264; it must be a multiple of 8, at most 256"
    assert flash_refusal(torch.bfloat16, cuda, 72) is None


def test_an_automatic_choice_says_what_and_why(caplog: pytest.LogCaptureFixture):
    choice._automatic.cache_clear()
    with caplog.at_level("INFO", logger="fit_kernels"):
        assert chosen_attention(torch.float32, CPU, 64) == "grouped"
        assert chosen_attention(torch.float32, CPU, 64) == "grouped"
    assert caplog.text.count("attention: grouped (the device is cpu)") == 1


def test_on_a_gpu_the_choice_passes_over_what_cannot_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("triton")
    choice._automatic.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cuda = torch.device("cuda")
    with caplog.at_level("INFO", logger="fit_kernels"):
        assert chosen_attention(torch.bfloat16, cuda, 72) == "torch-varlen"
        assert chosen_attention(torch.float32, cuda, 72) == "fused"
    assert "not flash-attn-3: flash-attn-3 is not installed" in caplog.text
    choice._automatic.cache_clear()


def test_every_implementation_is_accounted_for():
    found = dict(obstacles(torch.float32, CPU, 64))
    assert found["grouped"] is None
    assert {name for name, obstacle in found.items() if obstacle is None} == {"grouped"}
    assert found["fused"] == "they need a CUDA device, and the device is cpu"
