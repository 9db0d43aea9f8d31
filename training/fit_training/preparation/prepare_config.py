"""What a run of preparation is asked for.

Knows names and limits of options. Knows nothing of how the work is done.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fit_training.preparation.fit_rule import FitRule
from fit_training.preparation.image_variants import VariantConfig


@dataclass(frozen=True)
class PrepareConfig:
    """What to read, where to write, and how.

    `photographs` is what `open_photographs` takes, `autoencoder` what `autoencoder_folder` takes,
    `feature_network` a weights file; without one there are no features to align with. `class_names`
    chooses and orders the labels (every class, when None). The alignment basis is fitted to
    `alignment_photographs` photos, or read from `alignment_basis`: a validation folder takes the
    one of its training folder. A batch has at most `max_batch_pixels` pixels, and `num_workers`
    threads run batches beside one another.
    """

    photographs: Path
    destination: Path
    autoencoder: Path
    feature_network: Path | None = None
    split: str = "train"
    class_names: tuple[str, ...] | None = None
    variants: VariantConfig | FitRule = field(default_factory=VariantConfig)
    seed: int = 0
    images_per_shard: int = 2000
    alignment_dim: int = 96
    alignment_photographs: int = 512
    alignment_basis: Path | None = None
    max_batch_pixels: int = 2**18
    num_workers: int = 2
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise `ValueError` for counts below 1, and a basis without the network it is for."""
        counts = ("images_per_shard", "alignment_dim", "alignment_photographs", "num_workers")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if self.alignment_basis is not None and self.feature_network is None:
            raise ValueError(f"alignment_basis: {self.alignment_basis} without a feature_network")
