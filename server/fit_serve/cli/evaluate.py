"""`fit-serve evaluate`: make pictures of every class through the engine, and measure them.

Knows options and their order; pictures are the business of `cli.pictures` and
`cli.stored_pictures`, figures that of `fit_training.evaluation`, files that of
`cli.evaluation_report`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy

    from fit_serve.app import Assembly
    from fit_serve.limits import ModelLimits
    from fit_serve.request import SequenceRequest

AS_PHOTOGRAPHS = "as photographs"


@dataclass(frozen=True)
class PictureGroup:
    """Pictures that are one row of the table."""

    name: str
    requests: "Sequence[SequenceRequest]"


def evaluate(
    feature_network: Annotated[
        str, typer.Option(help='Weights of the network that measures, a bundle or "embedded".')
    ],
    photographs: Annotated[
        Path | None, typer.Option(help="Training photographs, as for prepare.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Validation photographs, as for prepare.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Statistics or pictures to compare with (.npz).")
    ] = None,
    model: Annotated[str, typer.Option(help='Folder of a bundle, or "embedded".')] = "embedded",
    sizes: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH,...: a row each; like the photographs if left out."),
    ] = None,
    num_images: Annotated[
        int, typer.Option("-n", "--num-images", min=1, help="Pictures of each class and size.")
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
    pictures: Annotated[
        Path | None, typer.Option(help="Folder that keeps pictures; only missing ones are made.")
    ] = None,
    npz: Annotated[
        Path | None, typer.Option(help="Folder for the pictures as HEIGHTxWIDTH.npz (arr_0).")
    ] = None,
    feature_cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps the photographs' features.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="File for the figures (JSON).")] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="File for the pictures (PNG).")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for bars of the figures.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Folder of an adapter; may be given again.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
) -> None:
    """Measure the quality of a model; the figures are one JSON object on the last line."""
    from fit_models.device import resolve_device
    from fit_serve.app import assemble
    from fit_serve.cli import evaluation_report as files
    from fit_serve.cli.pictures import resolutions
    from fit_serve.cli.quality_figures import Comparison, measure
    from fit_serve.settings import load_settings
    from fit_training.evaluation.feature_networks import open_feature_source

    archives = check_sources(photographs, validation, reference, sizes, npz)
    if plots is not None:
        from fit_training.evaluation.quality_plots import require_matplotlib

        require_matplotlib()
    wanted = None if sizes is None else resolutions(sizes)
    flags = {"model": model, "device": device, "dtype": dtype, "calibration": "stored"}
    asked_for = {name: text for name, text in flags.items() if text is not None}
    settings = load_settings({**asked_for, **({"adapters": adapter} if adapter else {})})
    source = open_feature_source(feature_network, resolve_device(settings.device))
    assembly = assemble(settings, say=lambda doing: typer.echo(doing, err=True))
    limits = assembly.service.limits
    sampling = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "sampler": sampler,
        "quality": quality,
    }
    groups = planned(wanted, archives, num_images, seed, limits, sampling)
    comparison = Comparison.prepare(source, archives, reference, limits.class_names, feature_cache)
    requests = [request for group in groups for request in group.requests]
    used = {name: getattr(requests[0], name) for name in sampling}
    made = made_pictures(assembly, requests, pictures, {**used, **adapter_facts(settings.adapters)})
    if npz is not None:
        files.write_arrays(npz, made, wanted or [])
    labels = [request.class_label for request in requests if request.class_label is not None]
    names = [group.name for group in groups for _ in group.requests]
    found = measure(comparison, made, labels, names, table=wanted is not None)
    if contact_sheet is not None:
        files.write_contact_sheet(contact_sheet, made, labels, limits.class_names)
    if plots is not None:
        files.write_plots(plots, found.rows, found.quality)
    figures = {
        "model": limits.name,
        "seed": seed,
        **used,
        "feature_network": source.name,
        **({} if found.quality is None else found.quality.to_dict()),
        "resolutions": [asdict(row) for row in found.rows],
    }
    if report is not None:
        report.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for line in files.summary(found.quality, found.rows):
        typer.echo(line, err=True)
    typer.echo(json.dumps(figures))


def check_sources(
    photographs: Path | None,
    validation: Path | None,
    reference: Path | None,
    sizes: str | None,
    npz: Path | None,
) -> tuple[Path, Path] | None:
    """Give the archives, if there are any; raises `ValueError` where options lack one another."""
    if (photographs is None) != (validation is None):
        lacking = "validation" if validation is None else "photographs"
        raise ValueError(f"{lacking}: --photographs and --validation go together; it is missing")
    if photographs is None and reference is None:
        raise ValueError("reference: --reference, or --photographs and --validation, are needed")
    if photographs is None and sizes is None:
        raise ValueError("sizes: without photographs to take sizes from, --sizes is needed")
    if npz is not None and sizes is None:
        raise ValueError("npz: an array holds pictures of one size; --npz needs --sizes")
    return None if photographs is None or validation is None else (photographs, validation)


def planned(
    wanted: Sequence[tuple[int, int]] | None,
    archives: tuple[Path, Path] | None,
    num_images: int,
    seed: int,
    limits: "ModelLimits",
    sampling: Mapping[str, Any],
) -> list[PictureGroup]:
    """The pictures to make: of the wanted resolutions, or in sizes like the photographs'."""
    from fit_serve.cli.pictures import requests_of, sizes_like_photographs, sizes_of_resolution
    from fit_training.evaluation.photograph_features import archive_classes, photograph_shapes

    if archives is not None:
        archive_classes(archives[0], limits.class_names)
    if wanted is None:
        assert archives is not None, "check_sources"
        shapes = photograph_shapes(archives[0], limits.class_names)
        sizes = sizes_like_photographs(shapes, num_images, seed, limits.size_multiple)
        return [PictureGroup(AS_PHOTOGRAPHS, requests_of(sizes, seed, limits, sampling))]
    groups = []
    for height, width in wanted:
        sizes = sizes_of_resolution(len(limits.class_names), num_images, height, width)
        requests = requests_of(sizes, seed, limits, sampling)
        groups.append(PictureGroup(f"{height}x{width}", requests))
    return groups


def made_pictures(
    assembly: "Assembly",
    requests: "Sequence[SequenceRequest]",
    folder: Path | None,
    sampling: Mapping[str, Any],
) -> "Sequence[numpy.ndarray]":
    """Pictures of all requests, in order; those of a folder are read when they are looked at."""
    from fit_serve.cli.pictures import make_pictures
    from fit_serve.cli.stored_pictures import PictureFolder, make_missing
    from fit_training.evaluation.feature_source import digest_of

    if folder is None:
        return make_pictures(assembly, requests)
    # A trained weight tells two states of one model apart.
    weight = next(assembly.bundle.network.parameters())
    facts = {
        "model": assembly.bundle.name,
        "weights": digest_of([weight.float()]).hex()[:16],
        **sampling,
    }
    return make_missing(assembly, requests, PictureFolder(folder, facts))


def adapter_facts(folders: Sequence[str]) -> dict[str, list[str]]:
    """What tells two trainings of an adapter apart; nothing where there is none."""
    from fit_models.adapter import ADAPTER_WEIGHTS

    if not folders:
        return {}
    weights = [(Path(folder).expanduser() / ADAPTER_WEIGHTS).read_bytes() for folder in folders]
    return {"adapters": [hashlib.sha256(data).hexdigest()[:16] for data in weights]}
