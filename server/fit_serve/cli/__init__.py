"""The `fit-serve` command."""

from fit_serve.cli.command import main

__all__ = ["main"]
