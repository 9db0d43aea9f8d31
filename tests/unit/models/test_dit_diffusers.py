"""Weights in the layout of diffusers' port become the original's and compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.networks.dit import DiT
from fit_models.networks.dit_diffusers import PORT_MARK, config_of_diffusers, weights_of_diffusers
from support.discrete_networks import Subject

PORT_CONFIG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "attention_bias": True,
    "sample_size": 8,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


@pytest.fixture(scope="module")
def port() -> torch.nn.Module:
    """The port with random weights; equal embedders in its blocks, as in released files."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(**PORT_CONFIG).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.normal_(std=0.2)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.startswith("transformer_blocks.1.norm1.emb."):
            tensor.copy_(state[name.replace("blocks.1.", "blocks.0.")])
    return network


def weights_of(port: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in port.state_dict().items()}


def test_the_ports_weights_give_the_ports_answers(port: torch.nn.Module) -> None:
    config = config_of_diffusers(PORT_CONFIG)
    network = DiT(config)
    network.load_state_dict(weights_of_diffusers(weights_of(port), config), strict=True)
    subject = Subject(network.eval().requires_grad_(False))
    for side in (8, 12):
        latents = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(side))
        t, y = torch.tensor([3, 801]), torch.tensor([7, 1000])
        grids = [(side // 2, side // 2)] * 2
        out = network(subject.pack(latents, grids), subject.layout(grids), t, y)
        wanted = port(latents, timestep=t, class_labels=y).sample
        torch.testing.assert_close(
            subject.unpack(out, grids, latents), wanted, atol=2e-5, rtol=1e-5
        )


def test_the_port_is_told_by_its_names(port: torch.nn.Module) -> None:
    assert PORT_MARK in port.state_dict()


def test_blocks_with_embedders_of_their_own_are_refused(port: torch.nn.Module) -> None:
    stored = weights_of(port)
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
    stored[name] += 1e-3
    with pytest.raises(ValueError, match="blocks with embedders of their own are not one DiT"):
        weights_of_diffusers(stored, config_of_diffusers(PORT_CONFIG))


def test_strange_and_missing_names_are_refused(port: torch.nn.Module) -> None:
    config = config_of_diffusers(PORT_CONFIG)
    stored = weights_of(port)
    del stored["transformer_blocks.1.attn1.to_k.bias"]
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias has no attn1\.to_k"):
        weights_of_diffusers(stored, config)
    with pytest.raises(ValueError, match=r"'caption_projection\.weight' is not in diffusers' DiT"):
        weights_of_diffusers({"caption_projection.weight": torch.zeros(1)}, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'; DiT has"),
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu'; DiT has 'gelu-approximate'"),
    ],
)
def test_a_config_of_another_transformer_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of_diffusers({**PORT_CONFIG, **changes})


def test_a_config_needs_its_sizes() -> None:
    values = {k: v for k, v in PORT_CONFIG.items() if k != "num_layers"}
    with pytest.raises(ValueError, match=r"config\.json of a DiT needs 'num_layers'"):
        config_of_diffusers(values)
