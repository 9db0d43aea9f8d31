"""`fit-serve evaluate`: make pictures of every class through the engine, and measure them.

Knows options and where the report goes; pictures are the business of `cli.pictures`, figures that
of `fit_training.evaluation.evaluate`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy

    from fit_training.evaluation.evaluate import QualityReport
    from fit_training.feature_network import FeatureNetwork

SHEET_COLUMNS = 8


def evaluate(
    photographs: Annotated[Path, typer.Option(help="Training photographs, as for prepare.")],
    validation: Annotated[Path, typer.Option(help="Validation photographs, as for prepare.")],
    feature_network: Annotated[Path, typer.Option(help="Weights of the network that measures.")],
    model: Annotated[str, typer.Option(help='Folder of a bundle, or "embedded".')] = "embedded",
    num_images: Annotated[
        int, typer.Option("-n", "--num-images", min=1, help="Pictures of each class.")
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures and their sizes.")] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", help="Steps of the sampler.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of guidance.")] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Noise levels with guidance."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Update rule of a step.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, or less work: balanced, fast.")
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the photographs' features.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="File for the figures (JSON).")] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="File for the pictures (PNG).")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Folder of an adapter; may be given again.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
) -> None:
    """Measure the quality of a model; the figures are one JSON object on the last line."""
    from fit_serve.app import assemble
    from fit_serve.cli.pictures import make_pictures, requests_of, sizes_like_photographs
    from fit_serve.settings import load_settings
    from fit_training.evaluation.photograph_features import photograph_shapes
    from fit_training.feature_network import load_feature_network

    network = load_feature_network(feature_network)
    flags = {"model": model, "device": device, "dtype": dtype, "calibration": "stored"}
    asked_for = {name: text for name, text in flags.items() if text is not None}
    settings = load_settings({**asked_for, **({"adapters": adapter} if adapter else {})})
    assembly = assemble(settings, say=lambda doing: typer.echo(doing, err=True))
    limits = assembly.service.limits
    sizes = sizes_like_photographs(
        photograph_shapes(photographs, limits.class_names), num_images, seed, limits.size_multiple
    )
    sampling = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "sampler": sampler,
        "quality": quality,
    }
    requests = requests_of(sizes, seed, limits, sampling)
    pictures = make_pictures(assembly, requests)
    labels = [label for label, _, _ in sizes]
    found = measured(
        pictures, labels, limits.class_names, (photographs, validation), network, feature_cache
    )
    if contact_sheet is not None:
        write_contact_sheet(contact_sheet, pictures, labels, limits.class_names)
    figures = {
        "model": limits.name,
        "seed": seed,
        **{name: getattr(requests[0], name) for name in sampling},
        **found.to_dict(),
    }
    if report is not None:
        report.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for line in summary(found):
        typer.echo(line, err=True)
    typer.echo(json.dumps(figures))


def measured(
    pictures: "Sequence[numpy.ndarray]",
    labels: Sequence[int],
    class_names: Sequence[str],
    archives: tuple[Path, Path],
    network: "FeatureNetwork",
    cache: Path | None,
) -> "QualityReport":
    """Compare the pictures with the photos of the (training, validation) archives."""
    import torch

    from fit_serve.cli.progress import progress_bar
    from fit_training.evaluation.evaluate import LabelledFeatures, measure_quality
    from fit_training.evaluation.measures import extract_features
    from fit_training.evaluation.photograph_features import photograph_features

    sets = []
    for name, archive in zip(("training", "validation"), archives, strict=True):
        with progress_bar(f"{name} features", "photographs") as advance:
            sets.append(photograph_features(archive, class_names, network, cache, advance))
    typer.echo("measuring", err=True)
    images = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in pictures]
    generated = LabelledFeatures(extract_features(network, images), torch.tensor(labels))
    return measure_quality(generated, sets[0], sets[1], class_names)


def write_contact_sheet(
    file: Path,
    pictures: "Sequence[numpy.ndarray]",
    labels: Sequence[int],
    class_names: Sequence[str],
) -> None:
    """Write the first pictures of every class, one class a row."""
    from fit_training.evaluation.contact_sheet import SheetRow, contact_sheet

    rows = []
    for label, name in enumerate(class_names):
        of_class = [pixels for pixels, own in zip(pictures, labels, strict=True) if own == label]
        rows.append(SheetRow(name, of_class[:SHEET_COLUMNS]))
    contact_sheet(rows).save(file, optimize=True)


def summary(quality: "QualityReport") -> Iterable[str]:
    """Say the figures in a few lines, worst classes first."""
    yield (
        f"probe accuracy {quality.generated_accuracy:.1%} of {quality.num_generated} pictures, "
        f"{quality.validation_accuracy:.1%} of validation photos: "
        f"{quality.relative_accuracy:.1%} of theirs"
    )
    frechet = quality.frechet
    yield (
        f"Frechet distance to training photos ({frechet.num_images} images a set): pictures "
        f"{frechet.generated:.1f}, validation photos {frechet.validation:.1f}, "
        f"held-out training photos {frechet.held_out:.1f}"
    )
    yield (
        f"distance to the nearest training photo, median: pictures "
        f"{quality.nearest_generated['p50']:.3f}, validation photos "
        f"{quality.nearest_validation['p50']:.3f}; "
        f"{quality.closer_than_most_photographs:.1%} of pictures nearer than 95 % of those"
    )
    worst = sorted(quality.classes, key=lambda row: row.generated)[:8]
    yield "worst classes: " + ", ".join(f"{row.name} {row.generated:.0%}" for row in worst)
