"""`fit-serve train-autoencoder`: a small autoencoder of our own, taught by a large one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fit_training.autoencoder.distillation import DistillationProgress


def train_autoencoder(
    source: Annotated[Path, typer.Argument(help="Archive of photographs (zip).")],
    destination: Annotated[Path, typer.Argument(help="Folder for pairs, checkpoints, export.")],
    teacher: Annotated[Path, typer.Option(help="Folder of the teacher, in diffusers' layout.")],
    feature_network: Annotated[Path, typer.Option(help="Weights of the perceptual loss.")],
    seed: Annotated[int, typer.Option(help="Of tiles, weights and batches.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train a small autoencoder on a teacher's latents; goes on where a stopped run was."""
    from fit_serve.cli.progress import progress_bar
    from fit_training.autoencoder.distillation import DistillationConfig, distill_autoencoder
    from fit_training.autoencoder.image_pairs import PairConfig, write_image_pairs

    pairs = PairConfig(archive=source, teacher=teacher, folder=destination / "pairs", seed=seed)
    run = DistillationConfig(
        pairs=pairs.folder,
        folder=destination,
        feature_weights=feature_network,
        seed=seed,
        device=device,
    )
    with progress_bar("cutting and encoding tiles", "files") as advance:
        write_image_pairs(pairs, advance)
    export = distill_autoencoder(run, lambda progress: typer.echo(report_line(progress)))
    typer.echo(f"wrote {export}")


def report_line(progress: "DistillationProgress") -> str:
    """Write where training is as one line."""
    terms = "  ".join(f"{name} {value:.4g}" for name, value in progress.terms.items())
    speed = f"{progress.pixels_per_s / 1e6:.2f} Mpx/s"
    return f"{progress.part} {progress.step}/{progress.steps}  {terms}  {speed}"
