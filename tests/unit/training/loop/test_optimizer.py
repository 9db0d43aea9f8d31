"""Every parameter is moved by exactly one optimizer, and only matrices decay."""

import pytest
import torch
from torch import nn

from fit_training.loop.optimizer import make_optimizers
from fit_training.loop.repa import AlignmentHead
from support.toy_bundle import make_toy_network

BLOCK_MATRICES = ("attn.qkv", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")


def trained_modules() -> tuple[nn.Module, nn.Module]:
    return make_toy_network().requires_grad_(), AlignmentHead(48, 6)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_optimizers_own_every_parameter_exactly_once(name: str):
    modules = trained_modules()
    optimizers = make_optimizers(modules, name, 1e-3, 0.01)
    owned = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for module in modules for p in module.parameters()}


def test_muon_moves_the_matrices_of_the_blocks_and_nothing_else():
    network, head = trained_modules()
    adamw, muon = make_optimizers((network, head), "muon", 1e-3, 0.01)
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, torch.optim.Muon)
    moved = {id(p) for group in muon.param_groups for p in group["params"]}
    matrices = {
        key
        for key, _ in network.named_parameters()
        if key.startswith("blocks.") and key.endswith(tuple(f"{m}.weight" for m in BLOCK_MATRICES))
    }
    assert {key for key, p in network.named_parameters() if id(p) in moved} == matrices
    assert len(moved) == len(matrices) == 2 * len(BLOCK_MATRICES)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_biases_and_embeddings_do_not_decay(name: str):
    network, head = trained_modules()
    optimizers = make_optimizers((network, head), name, 1e-3, 0.25)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for module in (network, head):
        for key, parameter in module.named_parameters():
            matrix = parameter.ndim == 2 and key != "y_embedder.embedding_table.weight"
            assert decay[id(parameter)] == (0.25 if matrix else 0.0), key


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_moves_every_parameter_that_has_a_gradient(name: str):
    modules = trained_modules()
    parameters = [p for module in modules for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in make_optimizers(modules, name, 1e-3, 0.0):
        optimizer.step()
    for parameter, old in zip(parameters, before, strict=True):
        # AdamW's first step is the learning rate, sign by sign; Muon's has AdamW's size (RMS 0.2).
        change = (parameter.detach() - old).square().mean().sqrt().item()
        assert 1e-4 < change < 1.1e-3
