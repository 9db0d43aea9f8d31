"""`fit-serve bench`: how fast, on this machine. Its options are those of `fit_serve.bench`."""

from typing import Annotated

import typer


def bench(
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS]...", help="Those of fit_serve.bench.")
    ] = None,
) -> None:
    """Measure requests a second, latency and packing, on traffic of mixed sizes."""
    from fit_serve.bench.command import run_bench

    run_bench(options or [])
