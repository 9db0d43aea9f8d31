"""`fit-serve calibrate-cache`: find the step cache's plan for a model, and show what it costs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy

    from fit_models.bundle import Bundle
    from fit_serve.request import SequenceRequest


def calibrate_cache(
    model: Annotated[str, typer.Option(help='Folder of a bundle, or "embedded".')] = "embedded",
    num_sequences: Annotated[
        int, typer.Option(min=1, help="Pictures whose trajectories are watched.")
    ] = 12,
    num_steps: Annotated[int, typer.Option(min=4, help="Steps of those trajectories.")] = 40,
    num_images: Annotated[
        int, typer.Option(min=0, help="Pictures that are made in every quality; 0: none.")
    ] = 16,
    output: Annotated[
        Path | None,
        typer.Option(help="File for the profile; the bundle's own if left out."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
) -> None:
    """Measure how a model's predictions change, and write the profile that plans are made from.

    Then makes pictures in every quality and tells their share of computed evaluations and their
    PSNR to the exact ones. The measures are one JSON object on the last line.
    """
    from dataclasses import replace

    from fit_models.bundle import PROFILE, bundle_folder, load_bundle
    from fit_models.device import use_fast_float32_matmul
    from fit_models.prediction_profile import measure_profile
    from fit_serve.cli.progress import progress_bar

    file = output or bundle_folder(model) / PROFILE
    bundle = load_bundle(model, device, dtype)
    if bundle.device.type == "cpu":
        use_fast_float32_matmul()
    with progress_bar("watching predictions", "evaluations") as advance:
        profile = measure_profile(bundle, num_sequences, num_steps, seed, advance)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(profile.to_dict(), indent=1) + "\n", encoding="utf-8")
    typer.echo(f"wrote {file}", err=True)
    rows = qualities(replace(bundle, profile=profile), num_images, seed) if num_images else []
    for row in rows:
        typer.echo("  ".join(f"{name} {value}" for name, value in row.items()), err=True)
    typer.echo(json.dumps({"model": bundle.name, "qualities": rows}))


def qualities(bundle: "Bundle", num_images: int, seed: int) -> list[dict[str, object]]:
    """Share of work and distance to the exact pictures, of every rule, order and quality."""
    from fit_serve.bench.picture_distance import psnr_db
    from fit_serve.engine import EngineConfig
    from fit_serve.quality import EXACT, QUALITIES

    exact, all_work = pictures_of(
        bundle, EngineConfig(), requests_of(bundle, num_images, seed, EXACT)
    )
    rows = []
    for rule, order in (("plan", 1), ("plan", 0), ("change", 1), ("change", 0)):
        config = EngineConfig(step_cache_rule=rule, step_cache_order=order)
        for quality in QUALITIES:
            if quality == EXACT:
                continue
            requests = requests_of(bundle, num_images, seed, quality)
            pictures, work = pictures_of(bundle, config, requests)
            distances = sorted(psnr_db(a, b) for a, b in zip(pictures, exact, strict=True))
            rows.append(
                {
                    "rule": rule,
                    "order": order,
                    "quality": quality,
                    "work": round(work / all_work, 3),
                    "psnr_db": round(sum(distances) / len(distances), 2),
                    "lowest_psnr_db": round(distances[0], 2),
                }
            )
    return rows


def requests_of(
    bundle: "Bundle", num_images: int, seed: int, quality: str
) -> "list[SequenceRequest]":
    """Pictures of different classes and shapes, as the model's defaults make them."""
    from fit_models.families import family_of
    from fit_serve.quality import QUALITIES
    from fit_serve.request import SequenceRequest

    defaults, config = bundle.defaults, bundle.model_config
    side = family_of(config).trained_side(config)
    shapes = ((side, side), (side * 3 // 4, side), (side, side * 3 // 4), (side // 2, side // 2))
    low, high = defaults.guidance_interval
    requests = []
    for index in range(num_images):
        rows, columns = shapes[index % len(shapes)]
        requests.append(
            SequenceRequest(
                sequence_id=f"{quality}-{index}",
                class_label=index * 7 % len(bundle.class_names),
                height=rows * bundle.pixels_per_token,
                width=columns * bundle.pixels_per_token,
                seed=seed + 1000 + index,
                num_inference_steps=defaults.num_inference_steps,
                guidance_scale=defaults.guidance_scale,
                guidance_interval=(max(low, QUALITIES[quality].lowest_guided_sigma), high),
                sampler=defaults.sampler,
                quality=quality,
            )
        )
    return requests


def pictures_of(
    bundle: "Bundle", config: object, requests: "list[SequenceRequest]"
) -> "tuple[list[numpy.ndarray], float]":
    """Pixels of every request, and the tokens the network computed for all of them."""
    from fit_serve.bench.target import EngineTarget
    from fit_serve.engine import EngineConfig

    assert isinstance(config, EngineConfig)
    with EngineTarget(bundle, config) as target:
        before = target.facts()["tokens"]
        futures = [target.submit(request) for request in requests]
        pixels = [future.result().pixels for future in futures]
        return pixels, target.facts()["tokens"] - before
