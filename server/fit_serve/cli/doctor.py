"""`fit-serve doctor`: what is installed, what is found, and what is chosen from it."""

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from fit_models.bundle import Bundle

NEEDED = ("fit-serve", "torch", "diffusers", "safetensors", "fastapi", "uvicorn")
OPTIONAL = ("triton", "flash-attn", "flash-attn-3", "flash-attn-4", "xformers")


def doctor(
    model: Annotated[str, typer.Option(help='Folder of a bundle, or "embedded".')] = "embedded",
    adapter: Annotated[
        list[str] | None, typer.Option(help="Folder of an adapter; may be given again.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    num_threads: Annotated[
        int, typer.Option(min=0, help="Torch threads of a step; 0 is torch's own choice.")
    ] = 0,
) -> None:
    """Say what is installed here, then load a model and say how it would run."""
    for name, fact in (*software(), *hardware()):
        tell(name, fact)
    from fit_models.bundle import load_bundle

    bundle = load_bundle(model, device, dtype, adapter or ())
    for name, fact in choices(bundle):
        tell(name, fact)
    for name, fact in calibrated(bundle, num_threads):
        tell(name, fact)


def tell(name: str, fact: str) -> None:
    """Print one line."""
    typer.echo(f"{name:<12} {fact}")


def software() -> Iterator[tuple[str, str]]:
    """Give the versions of Python and of what the server stands on or could use."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for package in (*NEEDED, *OPTIONAL):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed" + ("" if package in NEEDED else " (optional)")


def hardware() -> Iterator[tuple[str, str]]:
    """Give the processors and accelerators that torch sees."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", f"{cores} cores, {torch.get_num_threads()} threads of torch"
    if not torch.cuda.is_available():
        yield "gpu", "none that torch can use"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        capability = f"sm_{found.major}{found.minor}"
        yield "gpu", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, {capability}"


def choices(bundle: "Bundle") -> Iterator[tuple[str, str]]:
    """Give what was chosen for a model that has been loaded; read from it, not guessed again."""
    from fit_kernels import use_backend
    from fit_kernels.attention import capture_obstacle, chosen_attention, obstacles
    from fit_kernels.backend import current_backend
    from fit_models.diffusion.step_cache import GENERIC_PROFILE

    weights = list(bundle.network.parameters())
    count = sum(weight.numel() for weight in weights)
    classes = len(bundle.class_names)
    yield "model", f"{bundle.name}, {count / 1e6:.1f} M parameters, {classes} classes"
    yield "device", str(weights[0].device)
    yield "dtype", str(weights[0].dtype).removeprefix("torch.")
    use_backend("auto", bundle.device)
    yield "operators", f"{current_backend()}{_why_not_fused(bundle.device)}"
    situation = (bundle.dtype, bundle.device, bundle.model_config.head_dim)
    yield "attention", chosen_attention(*situation)
    for name, obstacle in obstacles(*situation):
        yield "", f"{name}: {obstacle or 'can run'}"
    yield "graphs", capture_obstacle(*situation) or "can be captured"
    measured = bundle.profile is not GENERIC_PROFILE
    remedy = "the generic profile (fit-serve calibrate-cache measures this model's)"
    yield "step cache", "the model's own profile" if measured else remedy


def calibrated(bundle: "Bundle", num_threads: int) -> Iterator[tuple[str, str]]:
    """Give the stored calibration of a model as it would run here with so many threads."""
    from fit_serve.cli.calibrate import in_words
    from fit_serve.engine import calibration_store

    key = calibration_store.key_of(bundle, num_threads)
    stored = calibration_store.load(key)
    if stored is None:
        plural = "" if key["num_threads"] == 1 else "s"
        threads = f"with {key['num_threads']} thread{plural}"
        remedy = "fit-serve calibrate, or the first fit-serve serve"
        yield "calibration", f"not calibrated yet {threads} ({remedy})"
    else:
        yield "calibration", in_words(stored)
        yield "", f"stored in {calibration_store.path_of(key)}"


def _why_not_fused(device: "torch.device") -> str:
    from fit_kernels.backend import obstacle_to_fused

    obstacle = obstacle_to_fused(device)
    return f" (no fused kernels: {obstacle})" if obstacle else ""
