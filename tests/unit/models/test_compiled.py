"""Compiled blocks give what the blocks give, and one compilation serves every mix of sizes."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fit_models.bundle import load_bundle
from fit_models.compiled import compile_blocks, release_blocks
from fit_models.modulation import StackedModulation
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.toy_bundle import make_toy_network

Grids = list[tuple[int, int]]
# Several totals, several sequences of one length and one alone, one modulation row and many.
MIXES: tuple[Grids, ...] = (
    [(4, 4), (3, 5), (4, 4)],
    [(5, 5)],
    [(2, 3)] * 6 + [(7, 4)],
    [(3, 3)] * 2,
)

# Attention divides a block, and its own module, into what is before it and what comes after.
_PARTS_OF_A_BLOCK = 4


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@torch.inference_mode()
def evaluate(network: FiTv2, grids: Grids) -> Tensor:
    config, generator = network.config, torch.Generator().manual_seed(len(grids))
    dtype = network.x_embedder.proj.weight.dtype
    layout = layout_of_grids(grids, config.head_dim, config.rope)
    stacked, sequences = StackedModulation(network), layout.num_sequences
    rows = stacked.rows(torch.linspace(0, 1, sequences), torch.arange(sequences) % 3)
    tokens = torch.randn(layout.num_tokens, config.token_channels, generator=generator)
    return network.denoise(tokens.to(dtype), layout, stacked.split(rows, layout.seq_of_token))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_one_compilation_serves_all_blocks_and_mixes():
    network = make_toy_network()
    wanted = [evaluate(network, grids) for grids in MIXES]
    compile_blocks(network, backend="eager")
    torch.testing.assert_close(evaluate(network, MIXES[0]), wanted[0], atol=1e-5, rtol=0.0)
    first = graphs()
    assert 0 < first <= _PARTS_OF_A_BLOCK  # one block's, though there are more
    for grids, want in zip(MIXES, wanted, strict=True):
        torch.testing.assert_close(evaluate(network, grids), want, atol=1e-5, rtol=0.0)
    assert graphs() == first


def test_released_blocks_are_as_before():
    network = make_toy_network()
    names, wanted = set(network.state_dict()), evaluate(network, MIXES[0])
    compile_blocks(network, backend="eager")
    assert set(network.state_dict()) == names
    release_blocks(network)
    assert torch.equal(evaluate(network, MIXES[0]), wanted)
    assert graphs() == 0
    release_blocks(network)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # the compiler's own
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_embedded_model_compiled_agrees_with_itself(dtype: str, error: float):
    network, compiled = (
        load_bundle("embedded", "cpu", dtype).fitv2("these tests") for _ in range(2)
    )
    compile_blocks(compiled)
    mixes: tuple[Grids, ...] = ([(10, 10)] * 2, [(10, 10)] * 4 + [(8, 12)] * 4, [(16, 16), (9, 7)])
    first = 0
    for grids in mixes:
        found, wanted = evaluate(compiled, grids), evaluate(network, grids)
        first = first or graphs()
        assert float((found - wanted).norm() / wanted.norm()) < error
    assert graphs() <= first + 2
