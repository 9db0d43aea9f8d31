"""Every release that is known: of families that are served, and of those that are not yet.

Knows where the families' own records are; nothing is fetched.
"""

from __future__ import annotations

from dataclasses import dataclass

from fit_models.families import FAMILIES
from fit_models.networks import (
    diffit_config,
    dimr_config,
    dit_config,
    fitv1_config,
    flag_dit_config,
    lumina_next_config,
    lumina_t2i_config,
    mdt_config,
    next_dit_config,
    terdit_config,
)
from fit_models.released.release import Release

_FITV2_SOURCE = "huggingface.co/InfImagine/FiTv2"


def _fitv2(name: str, file: str, size_bytes: int | None) -> Release:
    return Release(f"{name}", (file,), size_bytes, "Apache-2.0", _FITV2_SOURCE, name)


FITV2_RELEASES = (
    _fitv2("FiTv2-XL/2", "FiTv2_XL/model_ema.safetensors", 2_684_183_104),
    _fitv2("FiTv2-3B/2", "FiTv2_3B/model_ema.bin", 11_887_712_320),
    _fitv2("FiTv2-HR-XL/2", "FiTv2_XL_HRFT/model_ema.safetensors", None),
    _fitv2("FiTv2-HR-3B/2", "FiTv2_3B_HRFT/model_ema.safetensors", 11_887_712_320),
)
_RELEASES: dict[str, tuple[Release, ...]] = {
    "FiTv2": FITV2_RELEASES,
    "FiTv1": fitv1_config.RELEASES,
    "DiT": dit_config.RELEASES,
    "MDT": mdt_config.RELEASES,
    "DiffiT": diffit_config.RELEASES,
    "DiMR": dimr_config.RELEASES,
    "FlagDiT": flag_dit_config.RELEASES,
    "NextDiT": next_dit_config.RELEASES,
    "TerDiT": terdit_config.RELEASES,
    "LuminaNext": lumina_next_config.RELEASES,
    "LuminaT2I": lumina_t2i_config.RELEASES,
}
BY_SHAPES = ("FiTv2", "FiTv1", "DiT", "LuminaNext", "LuminaT2I")
"""Families that `convert` tells by shapes; of the others it must be told the size."""


@dataclass(frozen=True)
class KnownRelease:
    """A release, its family, and what can be done with it here.

    Attributes:
        family: class name of the network.
        release: what its authors published.
        served: whether `convert` makes a bundle of it that is served.
        by_shapes: whether `convert` needs no `--config`.
        text_encoder: where its language model is; empty for a family that draws classes.
    """

    family: str
    release: Release
    served: bool
    by_shapes: bool
    text_encoder: str = ""


def known_releases() -> tuple[KnownRelease, ...]:
    """All of them, families that are served first."""
    return tuple(
        KnownRelease(
            family,
            release,
            family in FAMILIES,
            family in BY_SHAPES,
            FAMILIES[family].text_encoder if family in FAMILIES else "",
        )
        for family, releases in _RELEASES.items()
        for release in releases
    )


def named_sizes() -> dict[str, tuple[str, ...]]:
    """Names of sizes by family, of families that are served."""
    return {name: tuple(family.named_configs) for name, family in FAMILIES.items()}
