"""The learning-rate curve: linear rise, plateau, linear fall to zero."""

from __future__ import annotations


def learning_rate_factor(step: int, num_steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Factor on the learning rate at `step` (0-based), in (0, 1]."""
    rise = (step + 1) / warmup_steps if step < warmup_steps else 1.0
    left = num_steps - step
    fall = left / decay_steps if left < decay_steps else 1.0
    return min(rise, fall)
