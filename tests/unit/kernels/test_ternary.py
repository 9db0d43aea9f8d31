"""Every ternary product of a CPU equals the definition in float64, and one is chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fit_kernels import reference, ternary_linear, use_ternary
from fit_kernels.ternary import TERNARY_PRODUCTS, current_ternary, native
from fit_kernels.ternary_weights import pack_ternary

# Few and many tokens, widths that fill no chunk of 32, more rows than one block: (T, D, Q).
SHAPES = [(0, 8, 2), (1, 1, 1), (16, 32, 4), (17, 33, 3), (3, 96, 65), (70, 4096, 200)]
# Of sums of order ten: fp32 rounds at 6e-8 in each of up to 4096 additions, bf16 at 4e-3 once.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1e-2, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def chosen_again() -> Iterator[None]:
    torch.manual_seed(0)
    before = current_ternary()
    yield
    use_ternary(before)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("product", TERNARY_PRODUCTS)
@pytest.mark.parametrize(("t", "d", "q"), SHAPES)
def test_a_product_equals_the_definition(
    t: int, d: int, q: int, product: str, dtype: torch.dtype
) -> None:
    choose(product)
    packed = pack_ternary(torch.randint(-1, 2, (4 * q, d)))
    x, bias = torch.randn(t, d).to(dtype), torch.randn(4 * q).to(dtype)
    alpha = torch.tensor([-1.3 * d**-0.5])
    for b in (bias, None):
        out = ternary_linear(x, packed, alpha, b)
        assert out.dtype == dtype
        wanted = reference.ternary_linear(
            x.double(), packed, alpha.double(), None if b is None else b.double()
        )
        torch.testing.assert_close(out.double(), wanted, atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("product", ["native", "tiles"])
def test_strided_tokens_and_weights_are_read_right(product: str) -> None:
    choose(product)
    x, packed = torch.randn(9, 80)[:, ::2], pack_ternary(torch.randint(-1, 2, (16, 80)))[:, 1::2]
    alpha = torch.ones(1)
    torch.testing.assert_close(
        ternary_linear(x, packed, alpha),
        reference.ternary_linear(x, packed, alpha),
        atol=2e-5,
        rtol=0.0,
    )


def test_the_bits_of_a_token_do_not_depend_on_the_others() -> None:
    choose("native")
    x, packed = torch.randn(37, 200), pack_ternary(torch.randint(-1, 2, (48, 200)))
    together = ternary_linear(x, packed, torch.ones(1))
    for i in (0, 15, 16, 36):
        assert torch.equal(together[i], ternary_linear(x[i : i + 1], packed, torch.ones(1))[0])


def test_threads_do_not_change_the_bits() -> None:
    choose("native")
    x, packed = torch.randn(40, 100), pack_ternary(torch.randint(-1, 2, (52, 100)))
    before = torch.get_num_threads()
    outs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outs.append(ternary_linear(x, packed, torch.ones(1)))
    torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(ValueError, match="known: auto, native, tiles, reference"):
        use_ternary("table")


def test_without_a_compiler_tiles_are_taken_and_native_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._built.cache_clear()
    try:
        use_ternary("auto")
        assert current_ternary() == "tiles"
        with pytest.raises(ValueError, match=r"'native' cannot run: .*no-compiler"):
            use_ternary("native")
    finally:
        native._built.cache_clear()


def test_a_compiler_without_threads_still_builds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if native.obstacle_to_native():
        pytest.skip("there is no C compiler here")
    monkeypatch.setattr(native, "_THREADS", "-fno-such-flag")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._built.cache_clear()
    try:
        choose("native")
        packed = pack_ternary(torch.ones(4, 3))
        assert ternary_linear(torch.ones(1, 3), packed, torch.ones(1)).tolist() == [[3.0] * 4]
    finally:
        native._built.cache_clear()


def choose(product: str) -> None:
    if product == "native" and (obstacle := native.obstacle_to_native()):
        pytest.skip(obstacle)
    use_ternary(product)
