"""All adaLN rows of a step at once are the rows the network would make block by block."""

from dataclasses import replace

import torch

from fit_models.modulation import StackedModulation, joined_rows
from fit_models.packing import layout_of_grids
from support.toy_bundle import make_toy_network

NETWORK = make_toy_network()


def test_stacked_rows_equal_those_made_block_by_block():
    config = NETWORK.config
    layout = layout_of_grids([(2, 2), (1, 3), (2, 1)], config.head_dim, config.rope)
    timestep, label = torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0, config.null_label, 2])
    wanted = NETWORK.modulate(timestep, label, layout)
    stacked = StackedModulation(NETWORK)
    rows_RM = stacked.rows(timestep, label)
    assert rows_RM.shape == (3, stacked.row_values)
    found = stacked.split(rows_RM, layout.seq_of_token)
    for ours, want in zip(
        (*found.blocks, found.final), (*wanted.blocks, wanted.final), strict=True
    ):
        torch.testing.assert_close(ours, want, atol=1e-5, rtol=0.0)
    tokens = torch.randn(9, config.token_channels, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        NETWORK.denoise(tokens, layout, found),
        NETWORK(tokens, layout, timestep, label),
        atol=3e-5,
        rtol=0.0,
    )


def test_a_row_does_not_notice_its_neighbours():
    """What lets a cache keep rows: alone or among others, a row is the same within rounding."""
    stacked = StackedModulation(NETWORK)
    timestep, label = torch.linspace(0, 1, 7), torch.arange(7) % 4
    together = stacked.rows(timestep, label)
    alone = [stacked.rows(timestep[i : i + 1], label[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0.0)


def test_splitting_copies_nothing():
    stacked = StackedModulation(NETWORK)
    rows_RM = stacked.rows(torch.tensor([0.5]), torch.tensor([1]))
    modulation = stacked.split(rows_RM, torch.zeros(4, dtype=torch.int64))
    storages = {x.untyped_storage().data_ptr() for x in (*modulation.blocks, modulation.final)}
    assert storages == {rows_RM.untyped_storage().data_ptr()}
    assert sum(x.shape[1] for x in (*modulation.blocks, modulation.final)) == stacked.row_values


def test_rows_taken_apart_are_joined_without_a_copy():
    stacked = StackedModulation(NETWORK)
    rows_RM = stacked.rows(torch.tensor([0.5, 0.1]), torch.tensor([1, 2]))
    modulation = stacked.split(rows_RM, torch.zeros(4, dtype=torch.int64))
    found = joined_rows(modulation)
    assert torch.equal(found, rows_RM)
    assert found.data_ptr() == rows_RM.data_ptr()


def test_rows_made_block_by_block_are_joined_by_a_copy():
    stacked = StackedModulation(NETWORK)
    rows_RM = stacked.rows(torch.tensor([0.5, 0.1]), torch.tensor([1, 2]))
    views = stacked.split(rows_RM, torch.zeros(4, dtype=torch.int64))
    copies = replace(views, blocks=tuple(block.clone() for block in views.blocks))
    assert torch.equal(joined_rows(copies), rows_RM)
    swapped = replace(views, blocks=views.blocks[::-1])
    assert torch.equal(joined_rows(swapped), torch.cat((*views.blocks[::-1], views.final), dim=1))
