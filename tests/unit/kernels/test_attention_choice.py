"""The choice of attention: by name it loads or raises; left alone it says what it took and why."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fit_kernels import attention_varlen, use_attention
from fit_kernels.attention import (
    ATTENTIONS,
    capture_obstacle,
    choice,
    chosen_attention,
    current_attention,
    flash_attn,
    obstacles,
    torch_varlen,
)
from fit_kernels.attention.implementation import _import_failure, flash_refusal

CPU = torch.device("cpu")


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that says it has an sm_90 and a torch built with flash attention."""
    choice._automatic.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    yield
    choice._automatic.cache_clear()


@pytest.fixture
def broken_flash_attn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """flash-attn is installed, for another torch than this one."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "flash_attn_interface.py").write_text("raise ImportError('undefined symbol: _ZN3')")
    (tmp_path / "flash_attn_interface.py").write_text("raise OSError('libcudart.so.12')")
    monkeypatch.syspath_prepend(str(tmp_path))
    _import_failure.cache_clear()
    yield
    _import_failure.cache_clear()


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


@pytest.mark.usefixtures("choosing", "broken_flash_attn")
@pytest.mark.parametrize(
    ("name", "why"), [("flash-attn-2", "undefined symbol"), ("flash-attn-3", "libcudart.so.12")]
)
def test_what_is_installed_but_does_not_load_is_refused_by_name(name: str, why: str):
    with pytest.raises(ValueError, match=f"installed but does not load: .*{why}"):
        use_attention(name)
    assert current_attention() == "auto"


@pytest.mark.usefixtures("hopper", "broken_flash_attn")
def test_what_is_installed_but_does_not_load_is_passed_over():
    assert chosen_attention(torch.bfloat16, torch.device("cuda"), 72) == "torch-varlen"


@pytest.mark.usefixtures("choosing", "broken_flash_attn")
def test_a_package_that_lacks_the_module_is_not_the_package():
    with pytest.raises(ValueError, match="flash-attn-4 is not installed"):
        use_attention("flash-attn-4")


def test_flash_attention_is_not_chosen_on_a_gpu_that_is_too_old(
    hopper: None, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert chosen_attention(torch.float16, torch.device("cuda"), 64) in ("fused", "grouped")


@pytest.mark.usefixtures("hopper")
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


@pytest.mark.usefixtures("hopper")
def test_on_a_gpu_the_choice_passes_over_what_cannot_run(caplog: pytest.LogCaptureFixture):
    pytest.importorskip("triton")
    cuda = torch.device("cuda")
    with caplog.at_level("INFO", logger="fit_kernels"):
        assert chosen_attention(torch.bfloat16, cuda, 72) == "torch-varlen"
        assert chosen_attention(torch.float32, cuda, 72) == "fused"
    assert "not flash-attn-3: flash-attn-3 is not installed" in caplog.text


def test_every_implementation_is_accounted_for():
    found = dict(obstacles(torch.float32, CPU, 64))
    assert found["grouped"] is None
    assert {name for name, obstacle in found.items() if obstacle is None} == {"grouped"}
    assert found["fused"] == "they need a CUDA device, and the device is cpu"


@pytest.mark.parametrize("pair", [False, True])
def test_flash_attention_is_given_only_what_its_version_takes(
    pair: bool, monkeypatch: pytest.MonkeyPatch
):
    """Some versions find the longest sequence themselves, some add the log-sum-exp."""
    given = {}

    def version_of_it(q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, softmax_scale=None):
        given.update(cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, scale=softmax_scale)
        return (q + 1, None) if pair else q + 1

    monkeypatch.setattr(flash_attn, "_function", lambda module: version_of_it)
    flash_attn._parameters.cache_clear()
    q, k, v = torch.randn(3, 5, 2, 8)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    out = flash_attn.FLASH_ATTN_4.attend(q, k, v, offsets, [(0, 1, 5)], 5, 0.5)
    flash_attn._parameters.cache_clear()
    assert torch.equal(out, q + 1)
    assert given == {"cu_seqlens_q": offsets, "cu_seqlens_k": offsets, "scale": 0.5}


@pytest.mark.parametrize("shares", [False, True])
def test_torchs_attention_is_given_fewer_key_heads_only_if_it_takes_them(
    shares: bool, monkeypatch: pytest.MonkeyPatch
):
    heads = []

    def varlen_attn(q, k, v, *lengths, scale=None, **options):
        heads.append((k.shape[1], v.shape[1], options))
        return q

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(torch_varlen, "_takes_fewer_key_heads", lambda: shares)
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    torch_varlen.TORCH_VARLEN.attend(q, k, k, offsets, [(0, 1, 5)], 5, None)
    assert heads == ([(2, 2, {"enable_gqa": True})] if shares else [(4, 4, {})])


def test_attention_that_takes_lengths_from_the_host_is_not_to_be_replayed():
    captures = {name for name in ATTENTIONS if choice.implementation(name).captures}
    assert captures == set(ATTENTIONS) - {"grouped", "xformers"}
    assert capture_obstacle(torch.float32, CPU, 72) == (
        "attention 'grouped' knows the lengths of sequences on the host only"
    )


@pytest.mark.usefixtures("hopper", "broken_flash_attn")
def test_attention_that_takes_lengths_from_the_device_may_be_replayed():
    assert capture_obstacle(torch.bfloat16, torch.device("cuda"), 72) is None
