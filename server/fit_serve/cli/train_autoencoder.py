"""`fit-serve train-autoencoder`: a small autoencoder of our own, taught by a large one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fit_training.autoencoder.averaged_training import TrainingPlan
    from fit_training.autoencoder.distillation import DistillationProgress

NUM_GENERATED = 1200
LEARNING_RATES = {"fresh": 2e-3, "started": 5e-4}
WARMUP_STEPS = {"fresh": 200, "started": 50}


def train_autoencoder(
    source: Annotated[Path, typer.Argument(help="Archive of photographs (zip).")],
    destination: Annotated[Path, typer.Argument(help="Folder for pairs, checkpoints, export.")],
    teacher: Annotated[Path, typer.Option(help="Folder of the teacher, in diffusers' layout.")],
    feature_network: Annotated[Path, typer.Option(help="Weights of the perceptual loss.")],
    start: Annotated[
        Path | None,
        typer.Option(help='Autoencoder or bundle to go on from, or "embedded"; else from nothing.'),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help='Bundle whose latents the decoder learns too, or "embedded".'),
    ] = None,
    generated: Annotated[
        int | None, typer.Option(min=1, help="How many of these latents; 1200 if left out.")
    ] = None,
    decoder_steps: Annotated[int, typer.Option(min=0, help="Steps of the decoder.")] = 10_000,
    encoder_steps: Annotated[int, typer.Option(min=0, help="Steps of the encoder.")] = 3_000,
    learning_rate: Annotated[
        float | None, typer.Option(help="At its highest; 2e-3, or 5e-4 with --start.")
    ] = None,
    batch_pixels: Annotated[int, typer.Option(min=1, help="Area of a step's tiles.")] = 1 << 16,
    seed: Annotated[int, typer.Option(help="Of tiles, latents, weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Computed in bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Train a small autoencoder on a teacher's latents; goes on where a stopped run was."""
    from fit_serve.cli.progress import progress_bar
    from fit_training.autoencoder.autoencoder_folder import autoencoder_folder
    from fit_training.autoencoder.distillation import DistillationConfig, distill_autoencoder
    from fit_training.autoencoder.generated_pairs import GeneratedConfig, write_generated_pairs
    from fit_training.autoencoder.image_pairs import PairConfig, write_image_pairs

    if generated is not None and model is None:
        raise ValueError(f"generated: {generated} latents need a --model that makes them")
    pairs = PairConfig(archive=source, teacher=teacher, folder=destination / "pairs", seed=seed)
    latents = model and GeneratedConfig(
        model=model,
        teacher=teacher,
        folder=destination / "generated",
        count=NUM_GENERATED if generated is None else generated,
        seed=seed,
    )
    run = DistillationConfig(
        pairs=pairs.folder,
        folder=destination,
        feature_weights=feature_network,
        decoder_plan=plan(decoder_steps, learning_rate, started=start is not None),
        encoder_plan=plan(encoder_steps, learning_rate, started=start is not None),
        batch_pixels=batch_pixels,
        start=None if start is None else autoencoder_folder(start),
        generated=latents.folder if latents else None,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    with progress_bar("cutting and encoding tiles", "files") as advance:
        write_image_pairs(pairs, advance)
    if latents:
        with progress_bar("generating and decoding latents", "pictures") as advance:
            write_generated_pairs(latents, advance)
    export = distill_autoencoder(run, lambda progress: typer.echo(report_line(progress)))
    typer.echo(f"wrote {export}")


def plan(steps: int, learning_rate: float | None, *, started: bool) -> "TrainingPlan":
    """A part's plan: trained weights learn slower, and need little warming up."""
    from fit_training.autoencoder.averaged_training import TrainingPlan

    kind = "started" if started else "fresh"
    rate = LEARNING_RATES[kind] if learning_rate is None else learning_rate
    return TrainingPlan(steps=steps, learning_rate=rate, warmup_steps=WARMUP_STEPS[kind])


def report_line(progress: "DistillationProgress") -> str:
    """Write where training is as one line."""
    terms = "  ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
    speed = f"{progress.pixels_per_s / 1e6:.2f} Mpx/s"
    return f"{progress.part} {progress.step}/{progress.steps}  {terms}  {speed}"
