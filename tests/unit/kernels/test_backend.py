"""The choice of implementation: explicit, by name, and of no effect on the numbers."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fit_kernels import (
    backend,
    gated_residual_layer_norm_modulate,
    guided_step,
    layer_norm_modulate,
    qk_norm_rope,
    swiglu,
    use_backend,
)
from fit_kernels.backend import current_backend, implementation

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def compiles(test: Callable) -> Callable:
    """Mark a test that loads the compiler: slow, and the compiler calls what torch deprecates."""
    looks_at_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
    deprecated = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
    return pytest.mark.slow(looks_at_grad(deprecated(test)))


@pytest.fixture(autouse=True)
def unchanged_backend() -> Iterator[None]:
    before = current_backend()
    yield
    use_backend(before)


def test_the_reference_runs_unless_another_is_asked_for():
    assert current_backend() == "reference"


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="operator backend 'cuda' is unknown; known: auto, refer"):
        use_backend("cuda")
    assert current_backend() == "reference"


def test_kernels_asked_for_by_name_load_or_raise():
    with pytest.raises(ValueError, match=r"'fused' cannot run: they need a CUDA device, .* is cpu"):
        use_backend("fused", "cpu")
    assert current_backend() == "reference"


def test_kernels_without_triton_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Triton is not installed \(pip install 'fit-serve"):
        use_backend("fused", "cuda")


def test_an_automatic_choice_says_what_and_why(caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="fit_kernels"):
        use_backend("auto", "cpu")
    assert current_backend() == "reference"
    assert "operators: reference (they need a CUDA device, and the device is cpu)" in caplog.text


@compiles
def test_the_backend_asked_for_is_the_one_that_runs():
    plain = implementation("swiglu")
    use_backend("compiled")
    assert current_backend() == "compiled"
    assert implementation("swiglu") is not plain
    assert implementation("swiglu") is implementation("swiglu")  # compiled once, not at every call
    use_backend("reference")
    assert implementation("swiglu") is plain


def results(num_tokens: int) -> dict[str, tuple[Tensor, ...]]:
    """Outputs and gradients of every operator on the same random pack."""
    generator = torch.Generator().manual_seed(0)
    row = torch.arange(num_tokens) % 3

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    x, y, shift, scale = randn(num_tokens, 16), randn(num_tokens, 16), randn(3, 16), randn(3, 16)
    qkv, angle = randn(num_tokens, 6, 8), randn(3, 4).detach()
    rows, memory, own = randn(3, 8).detach(), randn(num_tokens, 16), torch.arange(num_tokens)
    outs = {
        "layer_norm_modulate": layer_norm_modulate(x, shift, scale, row),
        "gated_residual_layer_norm_modulate": torch.stack(
            gated_residual_layer_norm_modulate(x, y, shift, shift, scale, row)
        ),
        "swiglu": swiglu(torch.cat((x, y), 1)),
        "qk_norm_rope": torch.stack(
            qk_norm_rope(qkv, angle.cos(), angle.sin(), row, num_heads=2, norm="layer")
        ),
        "guided_step": torch.stack(
            guided_step(x, y, memory, None, own, own.flip(0), rows, row, 12)
        ),
    }
    leaves = (x, y, shift, scale, qkv)
    answers = {}
    for name, out in outs.items():
        gradients = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
        answers[name] = (out.detach(), *(g for g in gradients if g is not None))
    return answers


@compiles
@pytest.mark.timeout(600)
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_the_reference():
    for num_tokens in (1, 6, 17):
        use_backend("reference")
        wanted = results(num_tokens)
        use_backend("compiled")
        for name, tensors in results(num_tokens).items():
            for ours, want in zip(tensors, wanted[name], strict=True):
                # fused sums run in another order: a few roundings of values of order ten
                torch.testing.assert_close(ours, want, atol=2e-5, rtol=1e-5, msg=name)
