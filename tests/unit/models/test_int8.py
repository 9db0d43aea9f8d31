"""Int8 products: near what they stand for, however the weights were laid out, on a CPU only."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fit_models.int8 import Int8Linear, Int8SwiGLU, quantize_int8
from fit_models.joined import join_projections
from fit_models.packing import layout_of_grids
from fit_models.prepacked import lay_out_weights
from support.toy_bundle import make_toy_network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [1, 7, 100])
def test_a_product_is_near_and_of_the_dtype_of_its_input(num_tokens: int, dtype: torch.dtype):
    torch.manual_seed(0)
    layer = nn.Linear(96, 50).requires_grad_(False)
    x_TI = torch.randn(num_tokens, 96, dtype=dtype)
    out_TO, exact_TO = Int8Linear(layer.weight, layer.bias)(x_TI), layer(x_TI.float())
    assert out_TO.dtype == dtype
    assert (out_TO - exact_TO).norm() / exact_TO.norm() < 0.02


def test_a_token_is_scaled_by_itself_alone():
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(8, 16), torch.zeros(8))
    quiet, loud = torch.randn(1, 16), 1e4 * torch.randn(1, 16)
    together = layer(torch.cat((quiet, loud, torch.zeros(1, 16))))
    assert torch.equal(together[:1], layer(quiet))
    assert torch.equal(together[2], torch.zeros(8))


@pytest.mark.parametrize("lay_out", [lambda _: None, join_projections, lay_out_weights])
def test_a_network_is_near_itself_however_it_was_laid_out(lay_out: Callable[[nn.Module], None]):
    torch.manual_seed(0)
    network = make_toy_network().eval().requires_grad_(False)
    config = network.config
    layout = layout_of_grids([(3, 4), (2, 2)], config.head_dim, config.rope, torch.device("cpu"))
    x_TK = torch.randn(layout.num_tokens, config.token_channels)
    arguments = (x_TK, layout, torch.tensor([0.2, 0.7]), torch.tensor([0, 1]))
    exact = network(*arguments)
    lay_out(network)
    for _ in range(2):  # once more changes nothing
        quantize_int8(network)
        assert all(isinstance(b.get_submodule("mlp"), Int8SwiGLU) for b in network.blocks)
        error = (network(*arguments) - exact).norm() / exact.norm()
        assert 0 < error < 0.05


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match="on meta; int8 products need a CPU"):
        quantize_int8(make_toy_network().to("meta"))
    with pytest.raises(ValueError, match="has no blocks"):
        quantize_int8(nn.Linear(4, 4))
    network = make_toy_network()
    network.blocks[0].set_submodule("mlp", nn.Identity())
    with pytest.raises(ValueError, match="a Identity cannot be quantized"):
        quantize_int8(network)
