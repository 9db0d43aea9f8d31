"""`fit-serve models`: which released weights are known, where they are, and what to type."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fit_models.released.known import KnownRelease


def models(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """List families, named sizes and released weights; nothing is downloaded."""
    from fit_models.released.known import known_releases, named_sizes

    releases = known_releases()
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in releases], indent=1))
        return
    for family, sizes in named_sizes().items():
        typer.echo(f"{family}: {', '.join(sizes)}")
    for each in releases:
        typer.echo("")
        for line in said_of(each):
            typer.echo(line)


def said_of(known: "KnownRelease") -> list[str]:
    """A release in a few lines; the last one is the command, or why there is none."""
    release = known.release
    size = "size unknown" if release.size_bytes is None else f"{release.size_bytes / 1e9:.2f} GB"
    lines = [
        f"{release.name} ({known.family}, {release.config_name})",
        f"  {release.source}: {', '.join(release.files)} ({size})",
        f"  licence: {release.licence}",
    ]
    if known.served:
        options = [] if known.by_shapes else [f"--config {release.config_name}"]
        if release.files[0].endswith((".bin", ".pt", ".pth")):
            options.append("--allow-pickle")
        if "HR" in release.config_name:
            options.append("--hr")
        if release.config_name.startswith("SiT"):
            options.append("--prediction velocity")
        options.append("--autoencoder VAE")
        if known.text_encoder:
            options.append(f"--text-encoder {known.text_encoder.rsplit('/', 1)[-1]}")
            lines.append(f"  reads prompts with {known.text_encoder}")
        file = release.files[0].rsplit("/", 1)[-1]
        return [*lines, f"  fit-serve convert {file} BUNDLE {' '.join(options)}"]
    return [*lines, "  the network is here, and not served yet"]
