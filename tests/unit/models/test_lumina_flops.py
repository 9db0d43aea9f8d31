"""The flops of a token are those of its matrix products, as torch counts them."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fit_models.networks.flag_dit import FlagDiT
from fit_models.networks.flag_dit_config import FlagDiTConfig
from fit_models.networks.flag_dit_config import position_tables as flag_tables
from fit_models.networks.lumina_next import LuminaNext
from fit_models.networks.lumina_next_config import LuminaNextConfig
from fit_models.networks.lumina_next_config import position_tables as next_tables
from fit_models.positions import layout_of_tables

GRIDS, TOKENS = [(4, 6), (4, 6)], 48


def test_flops_of_a_class_network() -> None:
    for prediction in ("velocity", "noise"):
        config = FlagDiTConfig(
            hidden_size=64, depth=2, num_heads=4, num_kv_heads=2, prediction=prediction
        )
        network = FlagDiT(config)
        layout = layout_of_tables(GRIDS, partial(flag_tables, config=config))
        modulation = network.modulate(torch.zeros(2), torch.tensor([1, 2]), layout)
        with FlopCounterMode(display=False) as counter:
            network.denoise(torch.zeros(TOKENS, config.token_channels), layout, modulation)
        assert counter.get_total_flops() == TOKENS * config.flops_per_token(24)


def test_flops_of_a_text_network_leave_out_what_is_computed_once() -> None:
    config = LuminaNextConfig(hidden_size=64, depth=2, num_heads=4, caption_channels=24)
    network = LuminaNext(config)
    layout = layout_of_tables(GRIDS, partial(next_tables, config=config))
    captions = network.caption_states(torch.zeros(10, 24), [5, 5])
    modulation = network.modulate(torch.zeros(2), captions.pooled, layout)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network.denoise(torch.zeros(TOKENS, config.token_channels), layout, modulation, captions)
    each = config.flops_per_token(24) + config.caption_flops_per_token(5)
    assert counter.get_total_flops() == TOKENS * each
