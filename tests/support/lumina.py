"""From the Lumina authors' constructor arguments and latents to our packed calls, and their loops.

The originals integrate a doubled batch: both halves are kept, the second is fed the first's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fit_models.captions import CaptionStates, pack_captions
from fit_models.diffusion.guidance import guide
from fit_models.diffusion.loss import sequence_mean_square
from fit_models.diffusion.runge_kutta import integrate_dopri5, integrate_fixed
from fit_models.diffusion.sampler import Trajectory
from fit_models.diffusion.shifted_flow import shifted_times
from fit_models.networks.lumina_config import LuminaConfig
from fit_models.patches import patchify, unpatchify
from support.golden import Case, Family

Network = TypeVar("Network", bound=nn.Module)
Velocity = Callable[[Tensor, Tensor], Tensor]
PATCH, GUIDED = 2, 12


def shape_of_official(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LuminaConfig` out of official constructor arguments."""
    return {
        "hidden_size": values["dim"],
        "depth": values["n_layers"],
        "num_heads": values["n_heads"],
        "num_kv_heads": values["n_kv_heads"],
        "in_channels": values["in_channels"],
        "patch_size": values["patch_size"],
        "multiple_of": values["multiple_of"],
        "qk_norm": values["qk_norm"],
        "norm_eps": values["norm_eps"],
    }


def loaded(family: Family, case: Case, network: Network) -> Network:
    """The network with the weights the case was recorded with, its names and shapes checked."""
    assert case.model is not None
    network.load_state_dict(family.weights(case.model), strict=True)
    return network.eval()


def grid_of(latent: Tensor) -> tuple[int, int]:
    """Rows and columns of tokens of a latent."""
    return latent.shape[-2] // PATCH, latent.shape[-1] // PATCH


def pack_latents(latents: Sequence[Tensor]) -> Tensor:
    """Latents [C, h, w] of any sizes as packed tokens [T, K]."""
    return torch.cat([patchify(latent[None], PATCH)[0] for latent in latents])


def unpack_latents(tokens_TP: Tensor, grids: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Packed tokens as latents [C, h, w]."""
    parts = tokens_TP.split([rows * columns for rows, columns in grids])
    return [
        unpatchify(part[None], *grid, PATCH)[0] for part, grid in zip(parts, grids, strict=True)
    ]


def guided_halves(velocity: Velocity, x_BChw: Tensor, t_B: Tensor, scale: float) -> Tensor:
    """The originals' `forward_with_cfg`, as a function of their doubled batch."""
    half = x_BChw[: len(x_BChw) // 2]
    out = velocity(torch.cat((half, half)), t_B)
    grids = [grid_of(out)] * len(half)
    conditional, unconditional = (pack_latents(list(part)) for part in out.chunk(2))
    scale_T1 = torch.full((len(conditional), 1), scale, dtype=out.dtype)
    moved = guide(conditional, unconditional, scale_T1, GUIDED)
    second = torch.cat((moved[:, :GUIDED], unconditional[:, GUIDED:]), dim=1)
    return torch.stack(unpack_latents(moved, grids) + unpack_latents(second, grids))


class Loop:
    """Runs a recorded trajectory with a field over the originals' doubled latents."""

    def __init__(self, case: Case, velocity: Callable[[Tensor, float], Tensor]) -> None:
        self.case, self.velocity = case, velocity
        self.calls: list[float] = []

    def field(self, time: Tensor, x: Tensor) -> Tensor:
        t = float(time.float())
        self.calls.append(t)
        return self.velocity(x, t)

    def integrate(self, times: Tensor | None = None) -> dict[str, Tensor]:
        """By the solvers that own their loop; everything the original recorded."""
        p = self.case.params
        z = self.case.inputs["z"]
        z = z.double() if p.get("dtype") == "float64" else z
        if times is None:
            times = shifted_times(p["num_steps"], p.get("shift") or 1.0)
        if p["method"] == "dopri5":
            states = integrate_dopri5(self.field, z, times, 1e-6, 1e-3)
        else:
            states = integrate_fixed(self.field, z, times, p["method"])
        got = {
            "final": states[-1].float(),
            "states": states[1:, : len(z) // 2].float(),
            "nfe": torch.tensor(float(len(self.calls))),
            "t_eval": torch.tensor(self.calls),
        }
        return {name: tensor for name, tensor in got.items() if name in self.case.expected}

    def follow(self, trajectory: Trajectory, noise: Tensor | None = None) -> list[Tensor]:
        """By coefficient rows, as the engine does; the state after each step, whole batch."""
        x, states = self.case.inputs["z"], []
        memory = torch.zeros_like(x)
        draws = iter(noise if noise is not None else [])
        for evaluation in trajectory.evaluations:
            v = self.field(torch.tensor(1.0 - evaluation.sigma), x)
            a, b, c, d, e, f, g = evaluation.coefficients
            new = a * x + b * v + c * memory
            memory = e * x + f * v + g * memory
            x = new + d * next(draws) if d else new
            if evaluation.ends_step:
                states.append(x)
        return states


def loss_of(case: Case, velocity: Velocity) -> Tensor:
    """Mean square error of the velocity of each sample at given times, [B]."""
    x0, x1, t = case.inputs["x0"], case.inputs["x1"], case.inputs["t"]
    t_B111 = t[:, None, None, None]
    error = velocity(t_B111 * x1 + (1.0 - t_B111) * x0, t) - (x1 - x0)
    tokens = pack_latents(list(error))
    each = len(tokens) // len(x1)
    return sequence_mean_square(tokens, torch.arange(len(x1)).repeat_interleave(each), len(x1))


def gradient_norms(network: nn.Module, loss_B: Tensor, keys: Sequence[str]) -> Tensor:
    """Norm of the gradient of the mean loss for each parameter; 0 where it has none."""
    loss_B.mean().backward()
    parameters = dict(network.named_parameters())
    assert sorted(parameters) == list(keys)
    norms = []
    for key in keys:
        gradient = parameters[key].grad
        norms.append(torch.zeros(()) if gradient is None else gradient.norm())
    return torch.stack(norms)


def parameters_and_keys(network: nn.Module) -> tuple[int, int]:
    """How many values and tensors a state dict has."""
    state = network.state_dict()
    return sum(tensor.numel() for tensor in state.values()), len(state)


def random_tokens(grids: Sequence[tuple[int, int]], config: LuminaConfig) -> list[Tensor]:
    """One pack of noise for each grid."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(rows * columns, config.token_channels, generator=generator)
        for rows, columns in grids
    ]


def captions_of(network: Any, case: Case) -> CaptionStates:
    """The recorded captions, packed and computed once."""
    return network.caption_states(*pack_captions(case.inputs["cap_feats"], case.inputs["cap_mask"]))
