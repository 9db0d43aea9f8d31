"""`fit-serve`: its subcommands, and what a failure looks like in a terminal.

Nothing heavy is imported before a subcommand runs, so that `--help` is there at once.
"""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fit_serve.cli.bench import app as bench_app
from fit_serve.cli.calibrate import calibrate
from fit_serve.cli.calibrate_cache import calibrate_cache
from fit_serve.cli.convert import convert
from fit_serve.cli.doctor import doctor
from fit_serve.cli.evaluate import evaluate
from fit_serve.cli.export import export
from fit_serve.cli.generate import generate
from fit_serve.cli.models import models
from fit_serve.cli.post_train import post_train
from fit_serve.cli.prepare import prepare
from fit_serve.cli.serve import serve
from fit_serve.cli.train import train
from fit_serve.cli.train_autoencoder import train_autoencoder
from fit_serve.errors import InvalidRequest, ServeError

EXIT_USER_ERROR = 2
EXIT_FAILURE = 1


class OneLineErrors(TyperGroup):
    """Says what a user can mend in one line; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; exits with 2 for errors of the user, 1 for refusals of the engine."""
        try:
            return super().invoke(ctx)
        except (ServeError, ValueError, OSError) as error:
            if ctx.params["show_traceback"]:
                raise
            typer.echo(f"error: {in_one_line(error)}", err=True)
            ours = isinstance(error, ServeError) and not isinstance(error, InvalidRequest)
            raise typer.Exit(EXIT_FAILURE if ours else EXIT_USER_ERROR) from None


app = typer.Typer(
    name="fit-serve",
    cls=OneLineErrors,
    help="Serve diffusion transformers that make images of any size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long flags at 80 columns
)
app.command()(serve)
app.command()(generate)
app.command()(prepare)
app.command()(train)
app.command()(post_train)
app.command()(train_autoencoder)
app.command()(export)
app.command()(convert)
app.command()(models)
app.command()(evaluate)
app.add_typer(bench_app, name="bench")
app.command()(calibrate)
app.command()(calibrate_cache)
app.command()(doctor)


def main() -> None:
    """Run the command line of this process."""
    app()


def in_one_line(error: Exception) -> str:
    """Say an error without the number that operating systems give it."""
    if isinstance(error, OSError) and error.strerror is not None:
        subject = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{subject}"
    return str(error) or type(error).__name__


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fit-serve {version('fit-serve')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
        ),
    ] = False,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from.")
    ] = False,
) -> None:
    pass
