"""`fit-serve bench`: how fast, on this machine. The options are those of `fit_serve.bench`."""

import typer


def bench(context: typer.Context) -> None:
    """Measure requests a second, latency and packing, on traffic of mixed sizes."""
    from fit_serve.bench.command import run_bench

    run_bench(context.args)
