"""`fit-serve export`: a checkpoint of `train` becomes a bundle that can be served."""

from pathlib import Path
from typing import Annotated

import typer

from fit_serve.cli import sampling_options as sampling


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a checkpoint, or of the run.")],
    destination: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    autoencoder: Annotated[
        Path,
        typer.Option(help='Folder of an autoencoder (diffusers), or of a bundle; or "embedded".'),
    ],
    name: Annotated[str, typer.Option(help="Name of the model, as clients see it.")],
    classes: Annotated[
        Path | None,
        typer.Option(help="File with one class name a line; else those of the run's config."),
    ] = None,
    num_inference_steps: sampling.NumInferenceSteps = 25,
    guidance_scale: sampling.GuidanceScale = 1.5,
    guidance_interval: sampling.GuidanceInterval = (0.0, 1.0),
    sampler: Annotated[
        str, typer.Option(help="Default update rule; else euler, or ddpm where noise is predicted.")
    ] = "",
    guided_channels: Annotated[
        int | None, typer.Option(help="Latent channels guidance changes; else the network's own.")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Delete a bundle that is already there.")] = False,
) -> None:
    """Write averaged weights, autoencoder and sampling defaults as one folder."""
    from fit_models.bundle import SamplingDefaults, bundle_folder, load_bundle
    from fit_models.families import samplers_of
    from fit_serve.cli.prepare import read_class_names
    from fit_training.autoencoder.autoencoder_folder import autoencoder_folder
    from fit_training.export import export_bundle, read_run, remove_bundle

    defaults = SamplingDefaults(num_inference_steps, guidance_scale, guidance_interval)
    known = samplers_of(read_run(checkpoint).model_config)
    if sampler and sampler not in known:  # before anything is deleted
        raise ValueError(f"sampler {sampler!r} is unknown here; known: {', '.join(known)}")
    class_names = () if classes is None else read_class_names(classes)
    if replace and (destination / "model_index.json").exists():
        remove_bundle(bundle_folder(str(destination)))
    run = export_bundle(
        checkpoint,
        autoencoder_folder(autoencoder),
        destination,
        name,
        class_names,
        defaults,
        guided_channels,
        sampler,
    )
    bundle = load_bundle(str(destination))
    num_bytes = sum(path.stat().st_size for path in destination.rglob("*.safetensors"))
    typer.echo(
        f"wrote {destination}: {bundle.name}, {len(bundle.class_names)} classes, "
        f"{num_bytes / 2**20:.1f} MiB, after {run.images_seen} images"
    )
