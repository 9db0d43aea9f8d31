"""Teach a small autoencoder to speak a teacher's latent space.

The decoder learns the teacher's decoded image from the teacher's latents, the encoder learns the
teacher's latents from the photograph; each alone, the decoder first. They start from random weights
or from those of another run. The student is diffusers'
`AutoencoderTiny` (after TAESD, https://github.com/madebyollin/taesd), so that a transformer trained
on the teacher's latents is served with it.

Knows the order of training and what each part minimises. Knows nothing of how pairs are made
(`image_pairs`, `generated_pairs`), of how images are compared (`reconstruction`), of the student's
files (`student`) and of checkpoints (`averaged_training`).

Dimension key: B tiles, H and W their sides in pixels, h = H / 8 and w = W / 8 in latents.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_training.autoencoder.averaged_training import AveragedTraining, TrainingPlan
from fit_training.autoencoder.image_pairs import ImagePairs, load_image_pairs
from fit_training.autoencoder.pair_batches import DrawnFrom
from fit_training.autoencoder.reconstruction import LossWeights, ReconstructionLoss
from fit_training.autoencoder.student import (
    DECODER_SHAPE,
    ENCODER_SHAPE,
    PartShape,
    export_student,
    load_start,
    new_student,
)
from fit_training.feature_network import load_feature_network

COMPUTED_IN = ("bfloat16", "float32")

LossOf = Callable[[nn.Module, ImagePairs, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class DistillationConfig:
    """What `distill_autoencoder` needs to know.

    `pairs` is a folder of `write_image_pairs`, `folder` takes checkpoints and the export,
    `feature_weights` are EfficientNet-lite0's (None if their loss weighs 0). A step sees
    `batch_pixels` of area. A `noisy_share` of the decoder's latents gets Gaussian noise of a
    standard deviation up to `noise`: the latents a transformer makes are not perfect either.

    `start` is a folder in diffusers' layout with the weights to begin with, random ones if None.
    `generated`, if there is one, is a folder of `write_generated_pairs`: a step of the decoder is
    taken on these with a probability of `generated_share`, and with no noise. `dtype` is what both
    networks compute in; their weights are float32.
    """

    pairs: Path
    folder: Path
    feature_weights: Path | None
    decoder: PartShape = DECODER_SHAPE
    encoder: PartShape = ENCODER_SHAPE
    decoder_plan: TrainingPlan = field(default_factory=lambda: TrainingPlan(steps=10_000))
    encoder_plan: TrainingPlan = field(default_factory=lambda: TrainingPlan(steps=3_000))
    batch_pixels: int = 1 << 16
    loss: LossWeights = field(default_factory=LossWeights)
    noisy_share: float = 0.3
    noise: float = 0.15
    start: Path | None = None
    generated: Path | None = None
    generated_share: float = 0.5
    seed: int = 0
    report_every_steps: int = 20
    save_every_s: float = 120.0
    device: str = "cpu"
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        """Raise `ValueError` for what cannot be trained."""
        if self.loss.need_features and self.feature_weights is None:
            raise ValueError("feature_weights: needed, for features have a weight in the loss")
        for name in ("batch_pixels", "report_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is less than 1")
        for name in ("noisy_share", "generated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1]")
        if self.dtype not in COMPUTED_IN:
            raise ValueError(f"dtype: {self.dtype!r} is not one of {', '.join(COMPUTED_IN)}")
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

    Raises `ValueError` if the pairs are incomplete, the start or the checkpoints are of another
    shape, or the loss stops being a number.
    """
    pairs = load_image_pairs(config.pairs)
    generated = [] if config.generated is None else load_image_pairs(config.generated)
    config.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    student = new_student(config.decoder, config.encoder)
    if config.start is not None:
        load_start(student, config.start)
    student.to(config.device).to(memory_format=torch.channels_last)
    decoder, encoder = (
        AveragedTraining(
            name, getattr(student, name), plan, config.folder / f"{name}.checkpoint.pt"
        )
        for name, plan in (("decoder", config.decoder_plan), ("encoder", config.encoder_plan))
    )

    def write_export() -> Path:
        averaged = new_student(config.decoder, config.encoder)
        averaged.decoder.load_state_dict(decoder.average, strict=True)
        averaged.encoder.load_state_dict(encoder.average, strict=True)
        return export_student(averaged, config.folder)

    def save(part: AveragedTraining) -> None:
        part.save()
        write_export()

    if not decoder.finished:
        drawn_from = DrawnFrom(pairs, generated, config.generated_share)
        _train(decoder, _decoder_loss(config), drawn_from, config, save, on_progress)
    if not encoder.finished:
        _train(encoder, _encoder_loss, DrawnFrom(pairs), config, save, on_progress)
    return write_export()


def _train(
    part: AveragedTraining,
    loss_of: LossOf,
    pairs: DrawnFrom,
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
        batch = pairs.draw(config.batch_pixels, generator, config.device)
        narrow = config.dtype == "bfloat16"
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=narrow):
            losses = loss_of(part.network, batch, generator)
        part.advance(losses["total"])
        terms.append({name: value.detach() for name, value in losses.items()})
        pixels += batch.num_pixels
        if part.step % config.report_every_steps and not part.finished:
            continue
        means = _means(terms)
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


def _means(terms: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean of every term over the steps that have it."""
    names = dict.fromkeys(name for each in terms for name in each)
    return {
        name: torch.stack([each[name] for each in terms if name in each]).mean().item()
        for name in names
    }


def _decoder_loss(config: DistillationConfig) -> LossOf:
    """Its image of latents, some of them noisy, against the teacher's image of the clean ones.

    Latents that a transformer made are imperfect enough: they get no noise.
    """
    path = config.feature_weights if config.loss.need_features else None
    network = None if path is None else load_feature_network(path).to(config.device)
    reconstruction = ReconstructionLoss(config.loss, network)

    def loss(
        decoder: nn.Module, batch: ImagePairs, generator: torch.Generator
    ) -> dict[str, Tensor]:
        latents_B4hw = batch.latents_B4hw
        share = 0.0 if batch.images_B3HW is None else config.noisy_share
        noisy_B = torch.rand(len(latents_B4hw), generator=generator) < share
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
    assert batch.images_B3HW is not None, "generated pairs are the decoder's alone"
    output_B4hw = encoder(batch.images_B3HW).float()
    square = F.mse_loss(output_B4hw, batch.latents_B4hw)
    absolute = F.l1_loss(output_B4hw, batch.latents_B4hw)
    return {"square": square, "absolute": absolute, "total": square + absolute}
