"""`fit-serve bench ladder`: every policy on the same requests, in one run."""

from typing import TYPE_CHECKING, Annotated

import typer

from fit_serve.cli import bench_options as options

if TYPE_CHECKING:
    import numpy

    from fit_serve.bench.ladder import FeatureDistance


def ladder(
    model: options.Model = "embedded",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    traffic: options.Traffic = "c-fit-small",
    policies: Annotated[
        str | None, typer.Option(help="Rungs, separated by commas; all if left out.")
    ] = None,
    num_requests: options.NumRequests = 40,
    load: Annotated[
        float, typer.Option(min=0.01, help="Arrivals, as a share of the capacity of packed.")
    ] = 0.8,
    slo_scale: Annotated[
        float, typer.Option(min=1.0, help="In time is this many times the latency alone.")
    ] = 3.0,
    guidance_scale: options.GuidanceScale = None,
    num_threads: options.NumThreads = None,
    max_num_seqs: options.MaxNumSeqs = 64,
    max_num_batched_tokens: options.MaxNumBatchedTokens = None,
    feature_network: Annotated[
        str | None, typer.Option(help="Network that measures distances too, as for evaluate.")
    ] = None,
    seed: options.Seed = 0,
    json_file: options.JsonFile = None,
) -> None:
    """Compare the engine with what other servers do, and with less work for nearly the picture."""
    from rich.console import Console

    from fit_serve.bench.command import facts_of, open_bundle
    from fit_serve.bench.ladder import RUNGS, LadderConfig, run_ladder
    from fit_serve.bench.ladder_report import ladder_json, ladder_table

    named = [rung.policy for rung in RUNGS] if policies is None else policies.split(",")
    config = LadderConfig(
        traffic=traffic,
        num_requests=num_requests,
        load=load,
        slo_scale=slo_scale,
        guidance_scale=guidance_scale,
        num_threads=num_threads,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        policies=tuple(name.strip() for name in named),
        seed=seed,
    )
    measure = None if feature_network is None else feature_distance(feature_network)
    bundle = open_bundle(model, device, dtype)
    rows, rate = run_ladder(bundle, config, lambda doing: typer.echo(doing, err=True), measure)
    facts = facts_of(bundle, traffic, seed)
    settings = {"load": load, "slo_scale": slo_scale, "offered_rate": rate}
    line = ladder_json(rows, {**facts, **settings, "num_requests": num_requests})
    if json_file is not None:
        json_file.write_text(line + "\n", encoding="utf-8")
    Console(width=140).print(ladder_table(rows))
    typer.echo(line)


def feature_distance(name_or_path: str) -> "FeatureDistance":
    """Mean distance between the features of pictures and of others, in their own unit."""
    import torch

    from fit_training.evaluation.feature_networks import open_feature_source

    source = open_feature_source(name_or_path)

    def features(pictures: "list[numpy.ndarray]") -> torch.Tensor:
        return source.features([torch.from_numpy(pixels).permute(2, 0, 1) for pixels in pictures])

    def distance(pictures: "list[numpy.ndarray]", others: "list[numpy.ndarray]") -> float:
        return float((features(pictures) - features(others)).norm(dim=1).mean())

    return distance
