"""A merged network is the adapted one; an adapter that does not fit is refused untouched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fit_models.adapter import NEW_ROWS
from fit_models.adapter_merge import merge_adapter, merge_adapters
from fit_models.bundle import load_bundle
from fit_models.networks.fitv2 import FiTv2
from fit_models.packing import layout_of_grids
from support.toy_adapter import make_adapted_network, make_toy_adapter, save_toy_adapter
from support.toy_bundle import CLASS_NAMES, make_toy_bundle, make_toy_network

GRIDS = [(2, 3), (5, 4), (1, 7)]


def predict(network: FiTv2, labels: list[int]) -> Tensor:
    """Velocities of a packed batch of several sizes."""
    config = network.config
    layout = layout_of_grids(GRIDS, config.head_dim, config.rope)
    generator = torch.Generator().manual_seed(1)
    tokens_TK = torch.randn(layout.num_tokens, config.token_channels, generator=generator)
    with torch.no_grad():
        return network(tokens_TK, layout, torch.tensor([0.1, 0.5, 0.9]), torch.tensor(labels))


def test_the_merged_network_is_the_adapted_one():
    merged = make_toy_network()
    merge_adapter(merged, make_toy_adapter(("lynx", "dachshund")))
    adapted = make_adapted_network(num_new_classes=2)
    assert merged.config == adapted.config
    for labels in ([0, 1, 2], [3, 4, 5]):
        expected = predict(adapted, labels)
        torch.testing.assert_close(predict(merged, labels), expected, atol=2e-5, rtol=2e-5)
    untouched = predict(make_toy_network(), [0, 1, 2])
    assert float((predict(merged, [0, 1, 2]) - untouched).abs().max()) > 0.1


def test_merging_an_adapter_of_zeros_changes_no_bit():
    adapter = make_toy_adapter()
    zeros = {
        name: torch.zeros_like(weight) if "lora_B" in name else weight
        for name, weight in adapter.weights.items()
    }
    merged = make_toy_network()
    merge_adapter(merged, replace(adapter, weights=zeros))
    before = make_toy_network().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in merged.state_dict().items())


def test_the_sum_is_float32_and_rounded_once():
    merged, exact = make_toy_network().bfloat16(), make_toy_network().bfloat16().float()
    for network in (merged, exact):
        merge_adapter(network, make_toy_adapter(("lynx",)))
    rounded = exact.bfloat16().state_dict()
    assert all(torch.equal(value, rounded[name]) for name, value in merged.state_dict().items())


def test_several_adapters_add_up_and_bring_their_classes_in_order():
    first, second = make_toy_adapter(("lynx",)), make_toy_adapter(("emu", "yak"), seed=1)
    merged = make_toy_network()
    names = merge_adapters(merged, (first, second), CLASS_NAMES)
    assert names == (*CLASS_NAMES, "lynx", "emu", "yak")
    table, old = (n.y_embedder.embedding_table.weight for n in (merged, make_toy_network()))
    new = (first.weights[NEW_ROWS], second.weights[NEW_ROWS])
    assert torch.equal(table, torch.cat((old[:-1], *new, old[-1:])))
    name = "blocks.1.mlp.fc1_g"
    added = sum(
        1.5 * a.weights[f"{name}.lora_B.weight"] @ a.weights[f"{name}.lora_A.weight"]
        for a in (first, second)
    )
    change = merged.get_parameter(f"{name}.weight") - make_toy_network().get_parameter(
        f"{name}.weight"
    )
    torch.testing.assert_close(change, added, atol=1e-6, rtol=1e-5)


def test_an_adapter_for_other_weights_or_shapes_is_refused_and_changes_nothing():
    network = make_toy_network(seed=1)
    with pytest.raises(ValueError, match="'toy-adapter' was made for another base: for 'toy'"):
        merge_adapters(network, (make_toy_adapter(),), CLASS_NAMES)
    adapter = make_toy_adapter()
    name = "blocks.1.attn.proj.lora_B.weight"
    short = {**adapter.weights, name: adapter.weights[name][:3]}
    with pytest.raises(ValueError, match=rf"{name} has shape \[3, 4\], the network needs \[48, 4"):
        merge_adapter(network, replace(adapter, weights=short))
    short.pop(name)
    with pytest.raises(ValueError, match=rf"{name} has shape none"):
        merge_adapter(network, replace(adapter, weights=short))
    before = make_toy_network(seed=1).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("taken", ["kite", "KITE", "lynx"])
def test_a_class_that_is_there_already_is_refused(taken: str):
    adapters = (make_toy_adapter(("lynx",)), make_toy_adapter(("yak", taken), name="zoo"))
    with pytest.raises(ValueError, match=f"adapter 'zoo': class '{taken}' is there already"):
        merge_adapters(make_toy_network(), adapters, CLASS_NAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bundle_is_loaded_with_its_adapters(tmp_path: Path, dtype: torch.dtype):
    base = make_toy_bundle(tmp_path / "toy")
    folders = [
        save_toy_adapter(tmp_path / "cats", ("lynx",)),
        save_toy_adapter(tmp_path / "birds", ("emu",), seed=1),
    ]
    bundle = load_bundle(str(base), "cpu", dtype, folders)
    assert bundle.name == "toy+cats+birds"
    assert bundle.class_names == (*CLASS_NAMES, "lynx", "emu")
    assert bundle.model_config.num_classes == len(bundle.class_names)
    assert not any(weight.requires_grad for weight in bundle.network.parameters())
    assert {weight.dtype for weight in bundle.network.parameters()} == {dtype}
    if dtype == torch.float32:
        expected = make_toy_network()
        for seed, name in enumerate(("lynx", "emu")):
            merge_adapter(expected, make_toy_adapter((name,), seed))
        found = predict(bundle.fitv2("these tests"), [1, 3, 5])
        torch.testing.assert_close(found, predict(expected, [1, 3, 5]), atol=1e-5, rtol=1e-5)
