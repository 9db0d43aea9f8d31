"""`fit-serve calibrate`: measure how long a step takes here, and keep it for the server."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fit_serve.engine.calibration import Calibration


def calibrate(
    model: Annotated[str, typer.Option(help='Folder of a bundle, or "embedded".')] = "embedded",
    adapter: Annotated[
        list[str] | None, typer.Option(help="Folder of an adapter; may be given again.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    num_threads: Annotated[
        int, typer.Option(min=0, help="Torch threads of a step; 0 is torch's own choice.")
    ] = 0,
    seconds: Annotated[float, typer.Option(help="Most that it may take.")] = 30.0,
) -> None:
    """Measure the time of a step against its tokens, choose the token budget, store both."""
    from rich.console import Console

    from fit_kernels import use_backend
    from fit_models.bundle import load_bundle
    from fit_models.device import use_fast_float32_matmul
    from fit_serve.engine import calibration_store
    from fit_serve.engine.calibration import calibrate as measure

    bundle = load_bundle(model, device, dtype, adapter or ())
    use_backend("auto", bundle.device)
    if bundle.device.type == "cpu":
        use_fast_float32_matmul()
    typer.echo(f"measuring {bundle.name}, at most about {seconds:.0f} s", err=True)
    calibration = measure(bundle, num_threads, seconds)
    path = calibration_store.save(
        calibration_store.key_of(bundle, calibration.num_threads), calibration
    )
    Console(width=100).print(as_table(calibration))
    typer.echo(in_words(calibration))
    typer.echo(f"stored in {path}" if path else "not stored; the warning above says why")


def as_table(calibration: "Calibration") -> "Table":
    """Give the measured curve, for people."""
    from rich.table import Table

    model, budget = calibration.cost_model, calibration.max_num_batched_tokens
    best = max(tokens / seconds for tokens, seconds in model.points)
    table = Table("tokens", "ms", "tokens/s", "of the best", "")
    for column in table.columns[:4]:
        column.justify = "right"
    for tokens, seconds in model.points:
        speed = tokens / seconds
        table.add_row(
            f"{tokens:,}",
            f"{seconds * 1e3:.2f}",
            f"{speed:,.0f}",
            f"{speed / best:.0%}",
            "knee" if tokens == budget else "",
        )
    return table


def in_words(calibration: "Calibration") -> str:
    """Say what was found in one line."""
    threads = f"{calibration.num_threads} thread{'s' if calibration.num_threads > 1 else ''}"
    return (
        f"{calibration.model} on {calibration.device}, {calibration.dtype}, {threads}: "
        f"{calibration.max_num_batched_tokens:,} tokens a step, {calibration.tokens_per_s:,.0f} "
        f"tokens/s; measured {calibration.measured_at} in {calibration.seconds:.1f} s"
    )
