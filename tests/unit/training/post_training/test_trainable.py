"""The share that high-resolution post-training trains is the published one, and nothing moves."""

from dataclasses import replace

import pytest
import torch

from fit_models.config import NAMED_CONFIGS, RopeConfig, named_config
from fit_models.networks.fitv2 import FiTv2
from fit_models.rope import rope_table
from fit_training.post_training.trainable import (
    freeze_for_high_resolution,
    high_resolution_config,
    is_trained,
    restart,
)
from support.toy_bundle import make_toy_network


@pytest.mark.parametrize(
    ("name", "count", "percent"),
    [("FiTv2-XL/2", 94_961_680, "14.151"), ("FiTv2-3B/2", 415_683_856, "13.987")],
)
def test_the_trained_share_is_that_of_the_paper(name: str, count: int, percent: str):
    with torch.device("meta"):
        network = FiTv2(NAMED_CONFIGS[name])
    assert freeze_for_high_resolution(network) == count
    weights = list(network.parameters())
    assert sum(weight.numel() for weight in weights if weight.requires_grad) == count
    assert f"{100 * count / sum(weight.numel() for weight in weights):.3f}" == percent


def test_the_large_products_and_the_label_table_stay():
    frozen = [name for name, _ in make_toy_network().named_parameters() if not is_trained(name)]
    kinds = {name.split(".", 2)[2] if name.startswith("blocks") else name for name in frozen}
    assert kinds == {
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.2.weight",
        "y_embedder.embedding_table.weight",
        "attn.qkv.weight",
        "attn.proj.weight",
        "mlp.fc1_g.weight",
        "mlp.fc1_x.weight",
        "mlp.fc2.weight",
    }


def test_a_restart_is_a_fresh_network_in_what_is_trained_and_the_base_elsewhere():
    network, base = make_toy_network(), make_toy_network().state_dict()
    torch.manual_seed(0)
    restart(network)
    for name, weight in network.named_parameters():
        assert torch.equal(weight, base[name]) == (not is_trained(name)), name
    down, up = network.low_rank_modulations()[0]
    assert not up.weight.any()
    bound = (6.0 / (down.in_features + down.out_features)) ** 0.5  # of Xavier's uniform draw
    assert 0.8 * bound < float(down.weight.max()) <= bound
    for name, weight in network.named_parameters():
        if name.endswith("bias") or "final_layer" in name:
            assert not weight.any(), name
    assert float(network.x_embedder.proj.weight.std()) > 0.1


def test_a_restart_draws_from_the_global_generator():
    draws = []
    for seed in (0, 0, 1):
        network = make_toy_network()
        torch.manual_seed(seed)
        restart(network)
        draws.append(network.x_embedder.proj.weight)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_released_models_are_their_bases_with_stretching_positions():
    for size in ("XL", "3B"):
        released = NAMED_CONFIGS[f"FiTv2-HR-{size}/2"]
        assert high_resolution_config(NAMED_CONFIGS[f"FiTv2-{size}/2"]) == released


def test_positions_of_trained_sizes_stay_and_larger_ones_stretch_by_axis():
    base = replace(named_config("FiTv2-Ti/2"), rope=RopeConfig("linear", True, 12))
    config = high_resolution_config(base)
    assert config.rope == RopeConfig("ntk-aware", True, 12)
    assert high_resolution_config(base, 8).rope.ori_max_pe_len == 8

    def angles(rows: int, columns: int, rope: RopeConfig) -> torch.Tensor:
        return rope_table(rows, columns, config.head_dim, rope)[0]

    assert torch.equal(angles(12, 9, config.rope), angles(12, 9, base.rope))
    tall, normal = angles(24, 9, config.rope), angles(24, 9, RopeConfig())
    half = config.head_dim // 4
    assert not torch.equal(tall[:, :half], normal[:, :half])
    assert torch.equal(tall[:, half:], normal[:, half:])
    with pytest.raises(ValueError, match="ori_max_pe_len is 0"):
        high_resolution_config(base, 0)
