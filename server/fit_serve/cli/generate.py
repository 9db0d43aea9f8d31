"""`fit-serve generate`: images without a server, through the same service."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fit_serve.errors import InvalidRequest
from fit_serve.request import GenerationResult, Progress

if TYPE_CHECKING:
    from fit_serve.app import Assembly

OFFLINE_SAMPLERS = ("dopri5", "heun3", "rk4")  # fit_models.offline's, without importing torch
LONGEST_SUBJECT = 40
"""Characters of a prompt that stand before the progress bar."""
FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def generate(
    height: Annotated[int, typer.Option(help="Height in pixels.")],
    width: Annotated[int, typer.Option(help="Width in pixels.")],
    class_named: Annotated[
        str | None, typer.Option("--class", help="Name or id of a class, of models that draw them.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="What to draw, in words, of models that read them.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance leads away from.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write: .png, .jpg or .webp.")
    ] = Path("out.png"),
    num_images: Annotated[
        int, typer.Option("-n", "--num-images", help="How many; several become out-0.png, ...")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same image; drawn and told if left out.")
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", "--steps", help="Steps of the sampler.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of classifier-free guidance; 1 is none.")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Noise levels with guidance; 1 is noise, 0 image."),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Update rule of a step.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, or less work: balanced, fast.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help='Folder of a bundle, or "embedded"; that is the default.')
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Folder of an adapter; may be given again.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
) -> None:
    """Make images of one class or prompt, of any size, and write them to files."""
    output_format = format_of(output)
    from fit_serve.app import assemble
    from fit_serve.cli.progress import progress_bar
    from fit_serve.settings import load_settings

    flags = {"model": model, "device": device, "dtype": dtype, "calibration": "stored"}
    asked_for = {name: text for name, text in flags.items() if text is not None}
    settings = load_settings({**asked_for, **({"adapters": adapter} if adapter else {})})
    assembly = assemble(settings, say=lambda doing: typer.echo(doing, err=True))
    if sampler in OFFLINE_SAMPLERS:
        assembly = offline(assembly, sampler)
    service = assembly.service
    asked = service.limits.complete(
        class_named,
        height,
        width,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        sampler=sampler,
        quality=quality,
        output_format=output_format,
    )
    service.limits.check(asked)
    assembly.engine.start()
    try:
        label = asked.class_label
        subject = asked.prompt if label is None else service.limits.class_names[label]
        with progress_bar((subject or "")[:LONGEST_SUBJECT], "evaluations") as advance:
            result = asyncio.run(service.generate(asked, summed(advance, num_images)))
    finally:
        assembly.engine.stop()
        service.close()
    for file, seed_made in write_images(result, output):
        typer.echo(f"{file}  seed {seed_made}")


def offline(assembly: "Assembly", sampler: str) -> "Assembly":
    """Put an engine for one solver that owns its loop in the place of the shared one."""
    from prometheus_client import CollectorRegistry

    from fit_serve.cli.offline_engine import OfflineEngine
    from fit_serve.service import GenerationService
    from fit_serve.telemetry import Telemetry

    limits = replace(assembly.service.limits, samplers=(sampler,))
    engine = OfflineEngine(assembly.bundle)
    telemetry = Telemetry(CollectorRegistry(), assembly.bundle.name)
    service = GenerationService(engine, limits, telemetry)
    return replace(assembly, engine=engine, service=service)


def format_of(output: Path) -> str:
    """Give the format that a file's name asks for; raises `InvalidRequest`."""
    if output.suffix.lower() not in FORMATS:
        known = ", ".join(FORMATS)
        raise InvalidRequest(
            f"output {output} has no known ending; the known ones are {known}", param="output"
        )
    if not output.absolute().parent.is_dir():
        raise InvalidRequest(f"output {output}: there is no such folder", param="output")
    return FORMATS[output.suffix.lower()]


def summed(advance: Callable[[int, int], None], num_images: int) -> Callable[[Progress], None]:
    """Make one progress of those of all images: evaluations done so far, of all.

    Images of a request take equally many evaluations; those not heard of yet count as such.
    """
    done: dict[str, int] = {}

    def on_progress(progress: Progress) -> None:
        done[progress.sequence_id] = progress.evaluations_done
        advance(sum(done.values()), num_images * progress.evaluations_total)

    return on_progress


def write_images(result: GenerationResult, output: Path) -> list[tuple[Path, int]]:
    """Write the images, and give file and seed of each; several get a number before the ending."""
    if len(result.images) == 1:
        files = [output]
    else:
        numbered = range(len(result.images))
        files = [output.with_stem(f"{output.stem}-{index}") for index in numbered]
    for file, image in zip(files, result.images, strict=True):
        file.write_bytes(image)
    return list(zip(files, result.seeds, strict=True))
