"""Options that `fit-serve bench` and `fit-serve bench ladder` share: model, traffic, engine."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="Folder of a bundle, embedded, or random:FiTv2-B/2.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Traffic = Annotated[str, typer.Option(help="c-fit-small or c-fit.")]
NumRequests = Annotated[int, typer.Option(min=1, help="Requests of every run.")]
GuidanceScale = Annotated[float | None, typer.Option(help="The model's if left out.")]
NumThreads = Annotated[int | None, typer.Option(min=1, help="Torch threads.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, help="Sequences of one step.")]
MaxNumBatchedTokens = Annotated[
    int | None, typer.Option(min=1, help="Tokens of one step; the engine chooses if left out.")
]
Seed = Annotated[int, typer.Option(help="Of requests and arrivals.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the JSON line here.")]
