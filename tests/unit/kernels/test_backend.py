"""The choice of implementation: explicit, by name, and of no effect on the numbers."""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fit_kernels import (
    gated_residual,
    layer_norm_modulate,
    linear_step,
    qk_norm_rope,
    swiglu,
    use_backend,
)
from fit_kernels.backend import current_backend, implementation

HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)


def compiles(test: Callable) -> Callable:
    """Mark a test that loads the compiler: slow, and the compiler calls what torch deprecates."""
    return pytest.mark.slow(pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")(test))


@pytest.fixture(autouse=True)
def unchanged_backend() -> Iterator[None]:
    before = current_backend()
    yield
    use_backend(before)


def test_the_reference_runs_unless_another_is_asked_for():
    assert current_backend() == "reference"


def test_an_unknown_backend_is_refused_by_name():
    with pytest.raises(ValueError, match="operator backend 'cuda' is unknown; known: reference"):
        use_backend("cuda")
    assert current_backend() == "reference"


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
    qkv, angle = randn(num_tokens, 3, 2, 8), randn(3, 4).detach()
    coefficients, memory = randn(3, 7).detach(), randn(num_tokens, 16)
    outs = {
        "layer_norm_modulate": layer_norm_modulate(x, shift, scale, row),
        "gated_residual": gated_residual(x, y, shift, row),
        "swiglu": swiglu(x, y),
        "qk_norm_rope": torch.stack(qk_norm_rope(qkv, angle.cos(), angle.sin(), row, qk_norm=True)),
        "linear_step": torch.stack(linear_step(x, y, memory, None, coefficients, row)),
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
