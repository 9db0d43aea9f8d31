"""`fit-serve prepare`: photographs in, latents for `train` out."""

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    source: Annotated[Path, typer.Argument(help="Archive of photographs (zip).")],
    destination: Annotated[Path, typer.Argument(help="Folder for the latents.")],
    autoencoder: Annotated[
        Path, typer.Option(help="Folder of the autoencoder, in diffusers' layout.")
    ],
    feature_network: Annotated[
        Path, typer.Option(help="Weights of the network whose features training aligns with.")
    ],
    split: Annotated[str, typer.Option(help="Which photographs: train or val.")] = "train",
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class name a line, in the order of their ids."),
    ] = None,
    num_variants: Annotated[int, typer.Option(help="Images made of each photograph.")] = 4,
    augment: Annotated[
        bool, typer.Option(help="Crop, resize and mirror; without it one plain image a photo.")
    ] = True,
    alignment_basis: Annotated[
        Path | None, typer.Option(help="Basis of the training folder, for a validation folder.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of crops, sizes and order.")] = 0,
    num_workers: Annotated[int, typer.Option(help="Threads that work beside one another.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Turn photographs into latents, once, before training; goes on where it was stopped."""
    from fit_serve.cli.progress import progress_bar
    from fit_training.preparation.image_variants import VariantConfig
    from fit_training.preparation.prepare import PrepareConfig, prepare_latents

    config = PrepareConfig(
        photographs=source,
        destination=destination,
        autoencoder=autoencoder,
        feature_network=feature_network,
        split=split,
        class_names=None if classes is None else read_class_names(classes),
        variants=VariantConfig(num_variants=num_variants if augment else 1, augment=augment),
        seed=seed,
        alignment_basis=alignment_basis,
        num_workers=num_workers,
        device=device,
    )
    with progress_bar("preparing", "images") as advance:
        prepare_latents(config, advance)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read one name a line; empty lines do not count. Raises `ValueError` if there is none."""
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    names = tuple(name for name in names if name)
    if not names:
        raise ValueError(f"classes: {file} names no class")
    return names
