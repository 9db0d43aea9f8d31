"""`fit-serve evaluate`: the measured quality of a model."""

import dataclasses
import json
from typing import Annotated, Any

import typer


def evaluate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="Fields of EvaluateConfig."),
    ] = None,
) -> None:
    """Measure the quality of a model; the figures are one JSON object on the last line."""
    from fit_serve.cli.key_values import from_key_values
    from fit_training.evaluate import EvaluateConfig
    from fit_training.evaluate import evaluate as run_evaluation

    result = run_evaluation(from_key_values(EvaluateConfig, settings or []))
    typer.echo(json.dumps(as_json(result)))


def as_json(result: Any) -> Any:
    """Give what `json` writes of a result: the fields of a dataclass, anything else itself."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.asdict(result)
    return result
