"""`fit-serve train`: read the config, train, show a bar and one line per report.

Of the processes that torchrun starts only the first one shows anything.
"""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file with the settings of the run.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file's."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Go on from the newest checkpoint; else refuse where there is one."),
    ] = True,
) -> None:
    """Train a network on what `prepare` wrote; goes on where a stopped run was."""
    from fit_serve.cli.progress import progress_bar
    from fit_training.loop.config import TrainConfig
    from fit_training.loop.config_file import load_config

    run = load_config(config, TrainConfig, overrides or [])
    from fit_training.loop.processes import is_main_of_environment
    from fit_training.loop.run import train as run_training

    is_main = is_main_of_environment()
    say = typer.echo if is_main else say_nothing
    say(f"training {run.model} for {run.num_steps} steps on {run.data}")
    with progress_bar("training", "steps", shown=is_main) as advance:

        def on_progress(row: dict[str, Any]) -> None:
            say(progress_line(row))
            advance(row["step"], run.num_steps)

        checkpoint = run_training(run, on_progress, resume=resume)
    say(f"wrote {checkpoint}")


def progress_line(row: dict[str, Any]) -> str:
    """Write a report as `name value` pairs; the time of day is left to the log file."""
    shown = {name: value for name, value in row.items() if name != "time"}
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown.items()
    )


def say_nothing(_text: str) -> None:
    """What all but the first of the processes that torchrun started say."""
