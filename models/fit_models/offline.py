"""One picture with a solver that owns its loop, away from the engine: for parity with the papers.

dopri5 chooses its steps from the error over all it integrates; alone in its batch, that is one
sequence, so the result is a function of the request here too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.guidance import Guidance, guide
from fit_models.diffusion.runge_kutta import FIXED_STEP, integrate_dopri5, integrate_fixed
from fit_models.families import VELOCITY, position_tables, prediction_of
from fit_models.patches import unpatchify
from fit_models.positions import layout_of_tables

OFFLINE_SAMPLERS = ("dopri5", "heun3", "rk4")


@torch.inference_mode()
def sample_offline(
    bundle: Bundle,
    class_label: int,
    height: int,
    width: int,
    seed: int,
    guidance: Guidance,
    sampler: str = "dopri5",
    num_inference_steps: int = 25,
    atol: float = 1e-6,
    rtol: float = 1e-3,
) -> Tensor:
    """Make one image.

    Args:
        bundle: the model.
        class_label: of the picture.
        height, width: pixels, multiples of `bundle.pixels_per_token`.
        seed: of the initial noise, the same as the engine's.
        guidance: of this sequence.
        sampler: of `OFFLINE_SAMPLERS`.
        num_inference_steps: of the fixed-step rules; dopri5 finds its own.
        atol, rtol: tolerances of dopri5 (FiT's defaults).

    Returns:
        uint8 [3, height, width].

    Raises:
        ValueError: the sampler is unknown or not for this model, which may read prompts, or a side
            is no multiple of a token's.
    """
    if sampler not in OFFLINE_SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is unknown; known: {', '.join(OFFLINE_SAMPLERS)}")
    if prediction_of(bundle.model_config) != VELOCITY:
        raise ValueError(f"sampler {sampler!r} follows a velocity; {bundle.name} predicts noise")
    side = bundle.pixels_per_token
    for name, value in (("height", height), ("width", width)):
        if value < side or value % side:
            raise ValueError(f"{name} is {value}; it must be a multiple of {side}")
    rows, columns = height // side, width // side
    config = bundle.model_config
    generator = torch.Generator().manual_seed(seed)
    noise_NK = torch.randn(rows * columns, config.token_channels, generator=generator)
    field = _Field(bundle, class_label, (rows, columns), guidance)
    x_NK = noise_NK.to(field.device)
    if sampler in FIXED_STEP:
        times = torch.linspace(0, 1, num_inference_steps + 1)
        states = integrate_fixed(field, x_NK, times, sampler)
    else:
        states = integrate_dopri5(field, x_NK, torch.linspace(0, 1, 2), atol, rtol)
    latent = unpatchify(states[-1][None], rows, columns, config.patch_size)
    return bundle.autoencoder.decode(latent)[0]


class _Field:
    """dx/dt of one guided sequence, time running from noise (0) to data (1)."""

    def __init__(
        self, bundle: Bundle, class_label: int, grid: tuple[int, int], guidance: Guidance
    ) -> None:
        self._network = bundle.class_network("solvers that own their loop")
        config = self._network.config
        self.device, self._dtype = bundle.device, bundle.dtype
        self._guidance = guidance
        labels = [class_label, config.null_label]
        self._labels = torch.tensor(labels, device=self.device)
        self._layouts = {
            branches: layout_of_tables(
                [grid] * branches, lambda r, c: position_tables(r, c, config), self.device
            )
            for branches in (1, 2)
        }

    def __call__(self, time: Tensor, x_NK: Tensor) -> Tensor:
        scale = self._guidance.scale_at(1.0 - float(time))
        branches = 1 if scale == 1.0 else 2
        velocity = self._network(
            x_NK.to(self._dtype).repeat(branches, 1),
            self._layouts[branches],
            torch.full((branches,), float(time), device=self.device),
            self._labels[:branches],
        ).float()
        if branches == 1:
            return velocity
        conditional, unconditional = velocity.chunk(2)
        scale_N1 = torch.full((len(conditional), 1), scale, device=self.device)
        channels = self._network.config.guided_token_channels
        return guide(conditional, unconditional, scale_N1, channels)
