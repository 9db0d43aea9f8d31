"""`fit-serve bench`: how fast, on this machine."""

from typing import Annotated

import typer

from fit_serve.cli import bench_options as options
from fit_serve.cli.ladder import ladder

app = typer.Typer(help="How fast, on this machine.", invoke_without_command=True)
app.command()(ladder)


@app.callback()
def bench(
    context: typer.Context,
    model: options.Model = "embedded",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    traffic: options.Traffic = "c-fit-small",
    policies: Annotated[
        str, typer.Option(help="Names of batchings, separated by commas.")
    ] = "serial,equal-shape-step,packed",
    num_requests: options.NumRequests = 60,
    load: Annotated[
        float, typer.Option(min=0.0, help="Share of the serial capacity offered; 0 leaves it out.")
    ] = 0.8,
    speedup: Annotated[
        float, typer.Option(min=0.0, help="How much more the other policies get as well.")
    ] = 1.5,
    guidance_scale: options.GuidanceScale = None,
    url: Annotated[str | None, typer.Option(help="Measure a running server instead.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second for --url; all at once if left out.")
    ] = None,
    num_threads: options.NumThreads = None,
    max_num_seqs: options.MaxNumSeqs = 64,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    seed: options.Seed = 0,
    json_file: options.JsonFile = None,
) -> None:
    """Measure requests a second, latency and packing, on traffic of mixed sizes.

    `fit-serve bench ladder` compares with what other servers do, and with less work.
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from fit_serve.bench.command import BenchConfig, run_bench
    from fit_serve.bench.report import as_table

    config = BenchConfig(
        model=model,
        device=device,
        dtype=dtype,
        traffic=traffic,
        policies=tuple(p.strip() for p in policies.split(",") if p.strip()),
        num_requests=num_requests,
        load=load,
        speedup=speedup,
        guidance_scale=guidance_scale,
        url=url,
        rate=rate,
        num_threads=num_threads,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        seed=seed,
        json_file=json_file,
    )
    rows, line = run_bench(config, say=lambda doing: typer.echo(doing, err=True))
    Console(width=140).print(as_table(rows))
    typer.echo(line)
