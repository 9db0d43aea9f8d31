"""The noise levels of one sequence, from pure noise to the image.

Knows sigmas only: 1 is pure noise, 0 is the image. A schedule with n steps has n + 1 sigmas.
"""

from __future__ import annotations


def flow_sigmas(num_inference_steps: int, last_sigma: float = 0.0) -> tuple[float, ...]:
    """Evenly spaced sigmas from 1 to `last_sigma`, both included (rectified flow).

    Raises:
        ValueError: fewer than 1 step, or `last_sigma` outside [0, 1).
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be at least 1")
    if not 0.0 <= last_sigma < 1.0:
        raise ValueError(f"last_sigma is {last_sigma}; it must be in [0, 1)")
    fall = (1.0 - last_sigma) / num_inference_steps
    sigmas = [1.0 - i * fall for i in range(num_inference_steps)]
    return (*sigmas, last_sigma)
