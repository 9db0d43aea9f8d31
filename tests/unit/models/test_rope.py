"""Rotary frequencies and tables equal those of the authors' code in every mode, at every size."""

import math

import pytest
import torch

from fit_models.config import RopeConfig
from fit_models.rope import axis_frequencies, rope_table
from support.golden import load_family

FAMILY = load_family("fitv2_rope")


@pytest.mark.parametrize("name", FAMILY.case_names("rope_freqs"))
def test_frequencies_equal_the_original(name: str):
    case = FAMILY.case(name)
    p = case.params
    found = [
        axis_frequencies(
            p["head_dim"],
            RopeConfig(mode, decouple, p["ori_max_pe_len"]),
            p["max_pe_len_h"],
            p["max_pe_len_w"],
        )
        for mode, decouple in p["rows"]
    ]
    case.check(
        {
            "freqs_h": torch.stack([f.height for f in found]),
            "freqs_w": torch.stack([f.width for f in found]),
            "m": torch.tensor([f.multiplier for f in found]),
        }
    )


@pytest.mark.parametrize("name", FAMILY.case_names("rope_table"))
def test_tables_equal_the_original(name: str):
    case = FAMILY.case(name)
    p = case.params
    rows, columns = p["max_pe_len_h"], p["max_pe_len_w"]
    rope = RopeConfig(p["mode"], p["decouple"], p["ori_max_pe_len"])
    cos, sin = rope_table(rows, columns, p["head_dim"], rope)
    column_N, row_N = case.inputs["grid"][0]  # in this order in the original
    token_N = (row_N * columns + column_N).long()
    # The original writes every angle twice, once for each member of the pair.
    found = {"cos": cos[token_N], "sin": sin[token_N]}
    case.check({k: v.repeat_interleave(2, dim=-1)[None] for k, v in found.items()})


def test_height_turns_the_first_half_and_width_the_second():
    cos, sin = rope_table(3, 4, 8, RopeConfig())
    angles = torch.atan2(sin, cos).unflatten(0, (3, 4))
    assert angles.shape == (3, 4, 4)
    torch.testing.assert_close(angles[:, 0, 0], torch.arange(3.0))
    torch.testing.assert_close(angles[0, :, 2], torch.arange(4.0))
    assert torch.equal(angles[0, :, :2], torch.zeros(4, 2))
    assert torch.equal(angles[:, 0, 2:], torch.zeros(3, 2))


@pytest.mark.parametrize("decouple", [False, True])
@pytest.mark.parametrize("mode", ["linear", "ntk-aware", "ntk-by-parts", "yarn"])
def test_within_the_trained_length_nothing_is_stretched(mode: str, decouple: bool):
    """A served size that was trained must see the very frequencies of training."""
    base = axis_frequencies(64, RopeConfig(), 12, 16)
    kept = axis_frequencies(64, RopeConfig(mode, decouple, 16), 12, 16)
    torch.testing.assert_close(kept.height, base.height)
    torch.testing.assert_close(kept.width, base.width)
    assert kept.multiplier == 1.0


def test_only_a_decoupled_axis_keeps_its_own_length():
    apart = axis_frequencies(64, RopeConfig("ntk-aware", True, 16), 16, 40)
    joint = axis_frequencies(64, RopeConfig("ntk-aware", False, 16), 16, 40)
    base = axis_frequencies(64, RopeConfig(), 16, 40)
    torch.testing.assert_close(apart.height, base.height)
    torch.testing.assert_close(apart.width, joint.width)
    torch.testing.assert_close(joint.height, joint.width)


def test_the_multiplier_is_part_of_the_table():
    rope = RopeConfig("ntk-aware-pro2", True, 4)
    cos, sin = rope_table(6, 5, 24, rope)
    factor = axis_frequencies(24, rope, 6, 5).multiplier
    assert factor == pytest.approx(math.sqrt(math.log(2 * 30) / math.log(16)))
    torch.testing.assert_close(cos.square() + sin.square(), torch.full_like(cos, factor**2))


def test_a_head_dim_that_cannot_hold_two_axes_of_pairs_is_refused():
    with pytest.raises(ValueError, match="head dim 6 is not a multiple of 4"):
        axis_frequencies(6, RopeConfig(), 2, 2)
