"""Only a GPU pads, and never past its budget."""

import pytest
import torch

from fit_serve.engine.buckets import default_buckets

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_by_default_only_a_gpu_pads() -> None:
    assert default_buckets(CPU) == default_buckets(CPU, 1024) == ()
    buckets = default_buckets(GPU)
    assert list(buckets) == sorted(set(buckets))
    assert (buckets[0], buckets[-1]) == (256, 32_768)


@pytest.mark.parametrize("budget", [1, 256, 300, 4096, 40_000])
def test_the_budget_is_the_last_bucket(budget: int) -> None:
    buckets = default_buckets(GPU, budget)
    assert list(buckets) == sorted(set(buckets))
    assert buckets[-1] == budget
    assert set(buckets) - {budget} <= set(default_buckets(GPU))
