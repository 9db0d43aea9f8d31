"""`fit-serve convert`: released weights become a bundle; a bundle becomes one released file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fit_serve.cli import sampling_options as sampling

if TYPE_CHECKING:
    from fit_models.families import NetworkConfig

_DTYPES = ("keep", "float32", "bfloat16")


def convert(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(help="Released file, or a folder with it; or a bundle.")
    ],
    destination: Annotated[
        Path, typer.Argument(help="Folder of the bundle; of a bundle, the file to write.")
    ],
    autoencoder: Annotated[
        Path | None, typer.Option(help="Folder of the autoencoder, in diffusers' layout.")
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the model, as clients see it; else the folder's.")
    ] = "",
    classes: Annotated[
        Path | None, typer.Option(help='File with one class name a line; else "class 0" and on.')
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read torch pickles, as tensors only.")
    ] = False,
    wrapper: Annotated[
        str | None, typer.Option(help="Key the weights are under, if a pickle has several.")
    ] = None,
    hr: Annotated[
        bool, typer.Option("--hr", help="A high-resolution model; its shapes do not tell.")
    ] = False,
    config: Annotated[
        str,
        typer.Option(help="A named size (fit-serve models), or a config.json; else by shapes."),
    ] = "",
    prediction: Annotated[
        str, typer.Option(help="Of weights with DiT's shapes: noise, or velocity (SiT).")
    ] = "noise",
    num_heads: Annotated[
        int | None, typer.Option(help="Attention heads, if no named size has these shapes.")
    ] = None,
    guided_channels: Annotated[
        int | None, typer.Option(help="Latent channels guidance changes; else three.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"One of {', '.join(_DTYPES)}.")] = "keep",
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of the language model, of networks that read captions."),
    ] = None,
    num_inference_steps: Annotated[
        int | None,
        typer.Option(
            "--num-inference-steps", "--steps", help="Default steps; else 25, for Lumina 30."
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Default guidance; else 1.5, for Lumina 4.")
    ] = None,
    guidance_interval: sampling.GuidanceInterval = (0.0, 1.0),
    sampler: Annotated[
        str, typer.Option(help="Default update rule; else euler, or ddpm where noise is predicted.")
    ] = "",
) -> None:
    """Turn released weights into a bundle, or back; lossless unless --dtype is given."""
    import torch

    from fit_models.bundle import MODEL_INDEX
    from fit_models.released.conversion import BundleOptions, convert_released, flatten_bundle
    from fit_serve.cli.prepare import read_class_names

    if dtype not in _DTYPES:
        raise ValueError(f"dtype is {dtype!r}; known: {', '.join(_DTYPES)}")
    written = None if dtype == "keep" else getattr(torch, dtype)
    if (source / MODEL_INDEX).is_file():
        _refuse_options_of_bundles(context)
        report = flatten_bundle(source, destination, written)
        typer.echo(f"wrote {destination}: {_say_tensors(report)}")
        return
    if autoencoder is None:
        raise ValueError("autoencoder: released weights need --autoencoder to become a bundle")
    options = BundleOptions(
        name=name,
        class_names=() if classes is None else read_class_names(classes),
        config=read_config(config) if config else None,
        num_heads=num_heads,
        hr=hr,
        prediction=prediction,
        guided_channels=guided_channels,
        dtype=written,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        sampler=sampler,
        text_encoder=text_encoder,
    )
    report = convert_released(source, destination, autoencoder, options, allow_pickle, wrapper)
    for line in _say_report(report):
        typer.echo(line)
    typer.echo(f"wrote {destination}, read back bit for bit and loaded")


def read_config(name_or_path: str) -> "NetworkConfig":
    """A named size, or a file as `transformer/config.json` of a bundle.

    Raises:
        ValueError: it is neither.
    """
    from fit_models.families import config_named, family_named

    path = Path(name_or_path)
    if path.suffix != ".json":
        return config_named(name_or_path)
    if not path.is_file():
        raise ValueError(f"config: no such file: {path}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}, not an object")
    return family_named(values.get("_class_name")).config.from_dict(values)


def _refuse_options_of_bundles(context: typer.Context) -> None:
    """A bundle already has what the other options would say."""
    allowed = {"source", "destination", "dtype"}
    for field, value in context.params.items():
        default = next(p.default for p in context.command.params if p.name == field)
        if field not in allowed and value != default:
            raise ValueError(f"{field}: means nothing when a bundle becomes a file; leave it out")


def _say_report(report: dict[str, Any]) -> list[str]:
    config, rope = report["config"], report["config"].get("rope")
    sizes = ("hidden_size", "depth", "num_heads", "adaln_lora_dim", "mlp_ratio", "patch_size")
    told = f"{config['num_heads']} heads" if "num_heads" in config else "all of it"
    if rope:
        stretched = f"{rope['mode']}, decoupled" if rope["decouple"] else rope["mode"]
        told += f", rope {stretched} (--hr says which)"
    if "prediction" in config:
        told += f", predicts the {config['prediction']} (--prediction says which)"
    lines = [f"{name}: sha256 {digest}" for name, digest in report["files"].items()]
    lines += [
        f"container: {report['container']}; stripped: {', '.join(report['stripped']) or 'nothing'}",
        f"matched: {_say_tensors(report)}, each once; written dtype: {report['written_dtype']}",
        f"family: {report['family']}; size: {report['size'] or 'none with a name'}; "
        + ", ".join(f"{key} {config[key]:g}" for key in sizes if key in config)
        + (f", {config['num_classes']} classes" if "num_classes" in config else ", reads captions"),
        f"not told by shapes: {told}",
    ]
    if report["attributes_dropped"]:
        lines.append(f"attributes dropped from {len(report['attributes_dropped'])} tensors")
    return lines


def _say_tensors(report: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{count} {name}" for name, count in report["dtypes"].items())
    ends = "; ".join(
        f"{which} {name} {shape}"
        for which in ("largest", "smallest")
        for name, shape in report[which].items()
    )
    return f"{report['tensors']} tensors ({dtypes}), {report['elements']:,} elements; {ends}"
