"""DiMR's named sizes are the released ones; what it cannot do is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from fit_models.networks.dimr import DiMR
from fit_models.networks.dimr_config import (
    NAMED_DIMR_CONFIGS,
    RELEASES,
    DiMRConfig,
    check_size,
    position_tables,
)


@pytest.mark.parametrize(
    ("name", "count", "keys"),
    [
        ("DiMR-XL/2R", 505_046_408, 1018),
        ("DiMR-G/2R", 1_056_352_904, 1446),
        ("DiMR-XL/3R", 525_027_372, None),
    ],
)
def test_named_sizes_are_the_released_ones(name: str, count: int, keys: int | None) -> None:
    with torch.device("meta"):
        network = DiMR(NAMED_DIMR_CONFIGS[name])
    assert sum(p.numel() for p in network.parameters()) == count
    assert keys is None or len(network.state_dict()) == keys


@pytest.mark.parametrize(
    ("name", "gmacs"), [("DiMR-XL/2R", 160.18), ("DiMR-G/2R", 331.10), ("DiMR-XL/3R", 206.0)]
)
def test_work_is_what_was_counted(name: str, gmacs: float) -> None:
    assert NAMED_DIMR_CONFIGS[name].flops_per_token(256) * 256 / 2e9 == pytest.approx(
        gmacs, rel=3e-3
    )


def test_grids_up_to_the_trained_one_are_served() -> None:
    config = NAMED_DIMR_CONFIGS["DiMR-XL/2R"]
    check_size(16, 16, config)
    check_size(8, 12, config)
    with pytest.raises(ValueError, match=r"1x1 to 16x16 .*256x256 pixels"):
        position_tables(17, 16, config)


def xl() -> dict[str, Any]:
    return NAMED_DIMR_CONFIGS["DiMR-XL/2R"].to_dict()


def test_configs_survive_their_file_and_releases_name_them() -> None:
    for config in NAMED_DIMR_CONFIGS.values():
        assert DiMRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert {release.config_name for release in RELEASES} <= set(NAMED_DIMR_CONFIGS)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (None, {"stages": []}, "stages is empty"),
        (None, {"latent_size": 33}, "multiple of patch_size 2"),
        (None, {"guided_channels": 5}, r"not in 1\.\.4"),
        (None, {"widht": 3}, "unknown model config keys"),
        (0, {"num_heads": 7}, "not a multiple of num_heads 7"),
        (0, {"patch_size": 4}, "must halve from stage to stage"),
        (1, {"num_heads": 4}, "but the first"),
        (1, {"widht": 4}, "unknown model config keys"),
    ],
)
def test_bad_values_are_refused(stage: int | None, changes: dict[str, Any], message: str) -> None:
    values = xl()
    values["stages"] = [dict(one) for one in values["stages"]]
    (values if stage is None else values["stages"][stage]).update(changes)
    with pytest.raises(ValueError, match=message):
        DiMRConfig.from_dict(values)
