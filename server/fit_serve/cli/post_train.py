"""`fit-serve post-train`: read the config, go on from a model, show a bar and a line per report."""

from pathlib import Path
from typing import Annotated, Any

import typer

from fit_serve.cli.train import progress_line, say_nothing


def post_train(
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
    """Go on from a model: larger pictures, an adapter, or fewer steps."""
    from fit_serve.cli.progress import progress_bar
    from fit_training.loop.config_file import load_config
    from fit_training.post_training.config import PostTrainConfig

    run = load_config(config, PostTrainConfig, overrides or [])
    from fit_training.loop.processes import is_main_of_environment
    from fit_training.post_training.run import post_train as run_post_training

    is_main = is_main_of_environment()
    say = typer.echo if is_main else say_nothing
    say(f"{run.method} on {run.base} for {run.num_steps} steps on {run.data}")
    with progress_bar("post-training", "steps", shown=is_main) as advance:

        def on_progress(row: dict[str, Any]) -> None:
            say(progress_line(row))
            advance(row["step"], run.num_steps)

        result = run_post_training(run, on_progress, resume=resume)
    say(f"wrote {result}")
