"""`fit-serve prepare`: photographs in, latents for `train` out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fit_training.preparation.fit_rule import FitRule
    from fit_training.preparation.image_variants import VariantConfig

SHOWN_SKIPPED = 5


def prepare(
    source: Annotated[
        Path,
        typer.Argument(help="Photographs: a folder CLASS/name.jpg, a zip, tar shards or parquet."),
    ],
    destination: Annotated[Path, typer.Argument(help="Folder for the latents.")],
    autoencoder: Annotated[
        Path,
        typer.Option(
            help='Folder of an autoencoder in diffusers\' layout, of a bundle, or "embedded".'
        ),
    ] = Path("embedded"),
    feature_network: Annotated[
        Path | None,
        typer.Option(help="Weights of the network whose features training may align with."),
    ] = None,
    split: Annotated[str, typer.Option(help="Which photographs: train or val.")] = "train",
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class name a line, in the order of their ids."),
    ] = None,
    rule: Annotated[
        str, typer.Option(help="What becomes of a photograph: augment, or fit as FiT was trained.")
    ] = "augment",
    max_side: Annotated[
        int | None, typer.Option(help="Of rule fit: S of the limit S x S in pixels; else 256.")
    ] = None,
    num_variants: Annotated[
        int | None, typer.Option(help="Of rule augment: images of each photograph; else 4.")
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(help="Of rule augment: the smallest area is its square; else 88."),
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(help="Of rule augment: the largest area is its square; else 184.")
    ] = None,
    max_enlargement: Annotated[
        float | None,
        typer.Option(help="Of rule augment: times a photograph's own area, at most; else 1.25."),
    ] = None,
    augment: Annotated[
        bool, typer.Option(help="Several images of each photo; without it one plain one.")
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
    from fit_training.preparation.prepare import SKIPPED, PrepareConfig, prepare_latents

    config = PrepareConfig(
        photographs=source,
        destination=destination,
        autoencoder=autoencoder,
        feature_network=feature_network,
        split=split,
        class_names=None if classes is None else read_class_names(classes),
        variants=variants_of(
            rule,
            augment,
            max_side,
            num_variants=num_variants,
            min_size=min_size,
            max_size=max_size,
            max_enlargement=max_enlargement,
        ),
        seed=seed,
        alignment_basis=alignment_basis,
        num_workers=num_workers,
        device=device,
    )
    with progress_bar("preparing", "images") as advance:
        made = prepare_latents(config, advance)
    typer.echo(
        f"{destination}: {made.num_images} images of {made.num_photographs} photographs "
        f"in {made.num_classes} classes"
    )
    if made.skipped:
        typer.echo(f"skipped {len(made.skipped)}, listed in {destination / SKIPPED}:", err=True)
        for each in made.skipped[:SHOWN_SKIPPED]:
            typer.echo(f"  {each.path}: {each.reason}", err=True)


def variants_of(
    rule: str, augment: bool, max_side: int | None, **of_augment: float | None
) -> "VariantConfig | FitRule":
    """Choose the rule; raises `ValueError` for an unknown one and for another rule's options."""
    from fit_training.preparation.alignment import TOKEN_PIXELS
    from fit_training.preparation.fit_rule import FitRule
    from fit_training.preparation.image_variants import VariantConfig

    if rule == "fit":
        for name, value in of_augment.items():
            if value is not None:
                raise ValueError(f"{name}: {value} goes with --rule augment only")
        return FitRule(max_side=256 if max_side is None else max_side, mixed=augment)
    if rule != "augment":
        raise ValueError(f"rule: {rule!r} is neither augment nor fit")
    if max_side is not None:
        raise ValueError(f"max_side: {max_side} goes with --rule fit only")
    given: dict[str, Any] = {k: v for k, v in of_augment.items() if v is not None}
    for name in ("min_size", "max_size"):
        if name in given and given[name] < 1:
            raise ValueError(f"{name}: {given[name]} is below 1")
    values = {k: v for k, v in given.items() if k in ("num_variants", "max_enlargement")}
    if not augment:
        values["num_variants"] = 1
    if "min_size" in given:
        values["min_area"] = given["min_size"] ** 2
    if "max_size" in given:
        values["max_area"] = given["max_size"] ** 2
        values["max_side"] = max(256, given["max_size"] * 3 // 2 // TOKEN_PIXELS * TOKEN_PIXELS)
    return VariantConfig(augment=augment, **values)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Read one name a line; empty lines do not count. Raises `ValueError` if there is none."""
    names = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    names = tuple(name for name in names if name)
    if not names:
        raise ValueError(f"classes: {file} names no class")
    return names
