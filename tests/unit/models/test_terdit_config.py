"""TerDiT's sizes are those of the paper, in number and in bytes; what cannot be is refused."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from fit_kernels.ternary_weights import pack_ternary, ternarised
from fit_models.networks.terdit import TerDiT
from fit_models.networks.terdit_config import (
    NAMED_TERDIT_CONFIGS,
    RELEASES,
    TerDiTConfig,
    check_size,
    position_tables,
)
from fit_models.ternary import FakeTernaryLinear, TernaryLinear

TOY = TerDiTConfig(hidden_size=16, depth=2, num_heads=2)


# Ternary weights by the released shapes; all parameters in millions by the paper's table.
@pytest.mark.parametrize(
    ("name", "ternary", "millions"),
    [
        ("TerDiT-600M/2", 603_979_776, 609.9),
        ("TerDiT-4.2B/2", 4_227_858_432, 4238.0),
        ("TerDiT-7B/2", 7_281_311_744, 7294.1),
    ],
)
def test_named_sizes_have_the_papers_parameters(name: str, ternary: int, millions: float) -> None:
    config = NAMED_TERDIT_CONFIGS[name]
    assert config.ternary_weights == ternary
    with torch.device("meta"):
        network, trained = TerDiT(config), TerDiT(config, FakeTernaryLinear)
    packed = [m for m in network.modules() if isinstance(m, TernaryLinear)]
    assert sum(4 * layer.weight.numel() for layer in packed) == ternary
    assert sum(p.numel() for p in trained.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("qk_norm", "keys_600m", "keys_4b"), [(False, 331, 651), (True, 395, 779)])
def test_named_sizes_have_as_many_names_as_the_released_files(
    qk_norm: bool, keys_600m: int, keys_4b: int
) -> None:
    for name, keys in (("TerDiT-600M/2", keys_600m), ("TerDiT-4.2B/2", keys_4b)):
        with torch.device("meta"):
            network = TerDiT(replace(NAMED_TERDIT_CONFIGS[name], qk_norm=qk_norm))
        assert len(network.state_dict()) == keys


def test_the_largest_release_needs_one_point_one_gigabytes() -> None:
    with torch.device("meta"):
        network = TerDiT(replace(NAMED_TERDIT_CONFIGS["TerDiT-4.2B/2"], qk_norm=True))
    total = sum(tensor.nbytes for tensor in network.state_dict().values())
    assert 1.09e9 < total < 1.11e9


@pytest.mark.parametrize("file", ["float", "packed"])
def test_loaded_weights_stay_two_bits_each(file: str) -> None:
    """All tensors that live after loading and a run: packed bytes, the rest, no float copy."""
    config = TerDiTConfig(hidden_size=256, depth=3, num_heads=8, num_classes=10)
    before = _living_bytes()
    with torch.device("meta"):
        network = TerDiT(config)
    network.load_state_dict(_weights(config, file), strict=True, assign=True)
    network.eval().requires_grad_(False)
    layout_tables = position_tables(4, 4, config)
    _run(network, config, layout_tables)
    del layout_tables
    owned = sum(tensor.nbytes for tensor in network.state_dict().values())
    rest = owned - config.ternary_weights // 4
    assert rest > 0
    assert _living_bytes() - before <= owned + 64 * 1024
    assert owned < config.ternary_weights * 4 / 6  # embedders and ends stay fp32


def _weights(config: TerDiTConfig, file: str) -> dict[str, torch.Tensor]:
    state = TerDiT(config, FakeTernaryLinear).state_dict()
    if file == "float":
        return state
    return {
        key: pack_ternary(ternarised(value))
        if f"{key.removesuffix('weight')}alphas" in state and key.endswith(".weight")
        else value
        for key, value in state.items()
    }


def _run(network: TerDiT, config: TerDiTConfig, tables: tuple[torch.Tensor, torch.Tensor]) -> None:
    from fit_models.packing import pack_layout

    layout = pack_layout([16], *tables, torch.arange(16))
    network(torch.randn(16, 16), layout, torch.tensor([5]), torch.tensor([1]))


def _living_bytes() -> int:
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    }
    return sum(storages.values())


def test_a_config_survives_its_file() -> None:
    assert TerDiTConfig.from_dict(TOY.to_dict()) == TOY
    with pytest.raises(ValueError, match="unknown model config keys"):
        TerDiTConfig.from_dict({**TOY.to_dict(), "window": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ({"hidden_size": 18, "num_heads": 9}, "multiples of 4"),
        ({"mlp_multiple": 6}, "multiples of 4"),
        ({"num_heads": 16}, "head dim 1 is odd"),
        ({"guided_channels": 5}, "guided_channels 5 is not in 1..4"),
        ({"label_order": "words"}, "label_order 'words' is unknown; known: strings, numbers"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TOY, **change)


def test_grids_without_positions_are_refused() -> None:
    for side in (1, 16, 32, 64):
        check_size(side, side, TOY)
    for rows, columns, message in ((0, 4, "empty"), (16, 32, "no square"), (65, 65, "1 to 64")):
        with pytest.raises(ValueError, match=message):
            check_size(rows, columns, TOY)


def test_a_position_is_the_tokens_number_whatever_the_row_length() -> None:
    cos, sin = position_tables(3, 4, TOY)
    again, _ = position_tables(2, 6, TOY)
    assert torch.equal(cos, again)
    assert cos.shape == sin.shape == (12, TOY.head_dim // 2)
    torch.testing.assert_close(cos[5, 1], torch.tensor(5.0 * 10000.0 ** (-2 / 8)).cos())


def test_flops_count_the_paper_s_products() -> None:
    # 119 and 941 GMAC for a picture of 256 tokens
    for name, macs in (("TerDiT-600M/2", 119e9), ("TerDiT-4.2B/2", 941e9)):
        flops = NAMED_TERDIT_CONFIGS[name].flops_per_token(256) * 256
        assert flops == pytest.approx(2 * macs, rel=0.02)


def test_releases_name_sizes_that_are_there() -> None:
    assert {release.config_name for release in RELEASES} <= set(NAMED_TERDIT_CONFIGS)
