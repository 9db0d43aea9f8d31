"""Options that say what a bundle's requests get by default; `export` and `convert` share them."""

from typing import Annotated

import typer

NumInferenceSteps = Annotated[
    int, typer.Option("--num-inference-steps", "--steps", help="Default steps of the sampler.")
]
GuidanceScale = Annotated[float, typer.Option(help="Default strength of guidance.")]
GuidanceInterval = Annotated[
    tuple[float, float],
    typer.Option(metavar="LOW HIGH", help="Default noise levels with guidance."),
]
Sampler = Annotated[str, typer.Option(help="Default update rule.")]
