"""Teach a small autoencoder, started from random weights, to speak a teacher's latent space.

The decoder learns the teacher's decoded image from the teacher's latents, the encoder learns the
teacher's latents from the photograph; each alone, the decoder first. The student is diffusers'
`AutoencoderTiny` (after TAESD, https://github.com/madebyollin/taesd), so that a transformer trained
on the teacher's latents is served with it.

Knows the student, the order of training, what each part minimises and the exported folder. Knows
nothing of how pairs are made (`image_pairs`), of how images are compared (`reconstruction`) and of
checkpoints (`averaged_training`).

Dimension key: B tiles, H and W their sides in pixels, h = H / 8 and w = W / 8 in latents.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_training.autoencoder.averaged_training import AveragedTraining, TrainingPlan
from fit_training.autoencoder.image_pairs import ImagePairs, draw_batch, load_image_pairs
from fit_training.autoencoder.reconstruction import LossWeights, ReconstructionLoss
from fit_training.feature_network import load_feature_network

EXPORT_NAME = "export"
LATENT_CHANNELS = 4

LossOf = Callable[[nn.Module, ImagePairs, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class PartShape:
    """One half of the student: channels in all its stages, and residual blocks of each stage."""

    width: int
    blocks: tuple[int, int, int, int]


@dataclass(frozen=True)
class DistillationConfig:
    """What `distill_autoencoder` needs to know.

    `pairs` is a folder of `write_image_pairs`, `folder` takes checkpoints and the export,
    `feature_weights` are EfficientNet-lite0's (None if their loss weighs 0). A step sees
    `batch_pixels` of area. A `noisy_share` of the decoder's latents gets Gaussian noise of a
    standard deviation up to `noise`: the latents a transformer makes are not perfect either.

    The decoder has no block at full size: an activation there costs half the time of all others.
    """

    pairs: Path
    folder: Path
    feature_weights: Path | None
    decoder: PartShape = PartShape(width=48, blocks=(4, 4, 3, 0))
    encoder: PartShape = PartShape(width=32, blocks=(1, 2, 2, 2))
    decoder_plan: TrainingPlan = field(default_factory=lambda: TrainingPlan(steps=10_000))
    encoder_plan: TrainingPlan = field(default_factory=lambda: TrainingPlan(steps=3_000))
    batch_pixels: int = 1 << 16
    loss: LossWeights = field(default_factory=LossWeights)
    noisy_share: float = 0.3
    noise: float = 0.15
    seed: int = 0
    report_every_steps: int = 20
    save_every_s: float = 120.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot be trained."""
        if self.loss.need_features and self.feature_weights is None:
            raise ValueError(f"feature_weights: needed, for loss.features is {self.loss.features}")
        for name in ("batch_pixels", "report_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        if not 0 <= self.noisy_share <= 1:
            raise ValueError(f"noisy_share: {self.noisy_share} is not in [0, 1]")
        if self.noise < 0:
            raise ValueError(f"noise: {self.noise} is less than 0")


@dataclass(frozen=True)
class DistillationProgress:
    """Where training is; the loss's terms are means, and the speed is, since the last report."""

    part: str
    step: int
    steps: int
    terms: dict[str, float]
    pixels_per_s: float
    saved: bool


def distill_autoencoder(
    config: DistillationConfig,
    on_progress: Callable[[DistillationProgress], None] = lambda progress: None,
) -> Path:
    """Train decoder, then encoder; return a folder for `AutoencoderTiny.from_pretrained`, float16.

    An interrupted run goes on at its last checkpoint with the batches it would have seen. The
    exported folder is written at every checkpoint; its encoder is random until the decoder is done.

    Raises `ValueError` if the pairs are incomplete, the checkpoints are of another shape, or the
    loss stops being a number.
    """
    pairs = load_image_pairs(config.pairs)
    config.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    student = new_student(config)
    student.to(config.device).to(memory_format=torch.channels_last)
    decoder, encoder = (
        AveragedTraining(
            name, getattr(student, name), plan, config.folder / f"{name}.checkpoint.pt"
        )
        for name, plan in (("decoder", config.decoder_plan), ("encoder", config.encoder_plan))
    )

    def save(part: AveragedTraining) -> None:
        part.save()
        export(config, decoder=decoder.average, encoder=encoder.average)

    if not decoder.finished:
        _train(decoder, _decoder_loss(config), pairs, config, save, on_progress)
    if not encoder.finished:
        _train(encoder, _encoder_loss, pairs, config, save, on_progress)
    export(config, decoder=decoder.average, encoder=encoder.average)
    return config.folder / EXPORT_NAME


def new_student(config: DistillationConfig) -> Any:
    """Make a `diffusers.AutoencoderTiny` with random weights, latents at 1/8 of the size."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return AutoencoderTiny(
        decoder_block_out_channels=(config.decoder.width,) * 4,
        num_decoder_blocks=config.decoder.blocks,
        encoder_block_out_channels=(config.encoder.width,) * 4,
        num_encoder_blocks=config.encoder.blocks,
        latent_channels=LATENT_CHANNELS,
    )


def export(
    config: DistillationConfig, decoder: dict[str, Tensor], encoder: dict[str, Tensor]
) -> None:
    """Write both parts' weights to `config.folder/export` as float16, in diffusers' layout."""
    exported = new_student(config)
    exported.decoder.load_state_dict(decoder, strict=True)
    exported.encoder.load_state_dict(encoder, strict=True)
    partial = config.folder / f"{EXPORT_NAME}.partial"
    nn.Module.to(exported, dtype=torch.float16)
    exported.save_pretrained(partial)
    _drop_repeated_entry(partial / "config.json")
    (config.folder / EXPORT_NAME).mkdir(exist_ok=True)
    for path in sorted(partial.iterdir()):
        path.replace(config.folder / EXPORT_NAME / path.name)
    partial.rmdir()


def _drop_repeated_entry(path: Path) -> None:
    """Take out what `AutoencoderTiny` saves but warns of when it loads; it sets that one itself."""
    described = json.loads(path.read_text())
    del described["block_out_channels"]
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _train(
    part: AveragedTraining,
    loss_of: LossOf,
    pairs: list[ImagePairs],
    config: DistillationConfig,
    save: Callable[[AveragedTraining], None],
    on_progress: Callable[[DistillationProgress], None],
) -> None:
    """Take the remaining steps of one part; report and save on the way and at the end."""
    saved_at = reported_at = time.monotonic()
    terms: list[dict[str, Tensor]] = []
    pixels = 0
    while not part.finished:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + part.step)
        batch = draw_batch(pairs, config.batch_pixels, generator, config.device)
        with torch.autocast(torch.device(config.device).type, dtype=torch.bfloat16):
            losses = loss_of(part.network, batch, generator)
        part.advance(losses["total"])
        terms.append({name: value.detach() for name, value in losses.items()})
        pixels += batch.num_pixels
        if part.step % config.report_every_steps and not part.finished:
            continue
        means = {name: torch.stack([each[name] for each in terms]).mean().item() for name in losses}
        if not math.isfinite(means["total"]):
            raise ValueError(f"{part.name}: the loss at step {part.step} is {means['total']}")
        now = time.monotonic()
        due = part.finished or now - saved_at >= config.save_every_s
        if due:
            save(part)
            saved_at = now
        speed = pixels / (now - reported_at)
        on_progress(
            DistillationProgress(part.name, part.step, part.plan.steps, means, speed, saved=due)
        )
        terms, pixels, reported_at = [], 0, now


def _decoder_loss(config: DistillationConfig) -> LossOf:
    """Its image of latents, some of them noisy, against the teacher's image of the clean ones."""
    path = config.feature_weights if config.loss.need_features else None
    network = None if path is None else load_feature_network(path).to(config.device)
    reconstruction = ReconstructionLoss(config.loss, network)

    def loss(
        decoder: nn.Module, batch: ImagePairs, generator: torch.Generator
    ) -> dict[str, Tensor]:
        latents_B4hw = batch.latents_B4hw
        noisy_B = torch.rand(len(latents_B4hw), generator=generator) < config.noisy_share
        sigma_B = torch.rand(len(latents_B4hw), generator=generator) * noisy_B * config.noise
        noise_B4hw = torch.randn(latents_B4hw.shape, generator=generator) * sigma_B.view(
            -1, 1, 1, 1
        )
        output_B3HW = decoder(latents_B4hw + noise_B4hw.to(config.device)).float()
        return reconstruction(output_B3HW, batch.decoded_B3HW, batch.images_B3HW)

    return loss


def _encoder_loss(
    encoder: nn.Module, batch: ImagePairs, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean square plus mean absolute distance of its latents to the teacher's."""
    output_B4hw = encoder(batch.images_B3HW).float()
    square = F.mse_loss(output_B4hw, batch.latents_B4hw)
    absolute = F.l1_loss(output_B4hw, batch.latents_B4hw)
    return {"square": square, "absolute": absolute, "total": square + absolute}
