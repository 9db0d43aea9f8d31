"""The network equals the authors' own code on every recorded forward."""

from __future__ import annotations

import pytest
import torch

from support.golden import load_family
from support.official import grids_of, layout_for, network_of, pack, pad

FAMILIES = {name: load_family(name) for name in ("fitv2", "fitv2_rope")}
FORWARD = [(f, c) for f, family in FAMILIES.items() for c in family.case_names("forward")]


@pytest.mark.parametrize(("family_name", "case_name"), FORWARD)
def test_forward_equals_the_original(family_name: str, case_name: str) -> None:
    family = FAMILIES[family_name]
    case = family.case(case_name)
    network = network_of(family, case)
    grids = grids_of(case)
    x = case.inputs["x"]
    out = network(
        pack(x, grids), layout_for(network, grids), case.inputs["t"], case.inputs["y"].long()
    )
    case.check({"out": pad(out, grids, x.shape[1])})


def test_a_sequence_does_not_notice_its_neighbours() -> None:
    family = FAMILIES["fitv2"]
    case = family.case("forward_3x5")
    network = network_of(family, case)
    grids = [(3, 5), (4, 4), (1, 1), (3, 5), (2, 9)]
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randn(h * w, 16, generator=generator) for h, w in grids]
    t = torch.linspace(0.05, 0.95, len(grids))
    y = torch.arange(len(grids)) * 7
    together = network(torch.cat(tokens), layout_for(network, grids), t, y)
    start = 0
    for i, grid in enumerate(grids):
        alone = network(tokens[i], layout_for(network, [grid]), t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(together[start : start + len(alone)], alone, atol=2e-5, rtol=0.0)
        start += len(alone)
