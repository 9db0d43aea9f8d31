"""On a GPU: the same pictures as on the CPU, neighbours unnoticed, padding without effect."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from fit_models.bundle import load_bundle
from fit_serve.engine import EngineConfig, EngineHandle
from fit_serve.request import SequenceRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REQUESTS = [
    SequenceRequest(
        sequence_id=f"s{i}",
        class_label=i % 3,
        height=16 * (2 + i % 5),
        width=16 * (2 + (3 * i) % 7),
        seed=i,
        num_inference_steps=3 + i % 4,
        guidance_scale=(1.0, 2.5)[i % 2],
        guidance_interval=(0.0, 1.0) if i % 3 else (0.2, 0.8),
        sampler=("euler", "heun", "midpoint", "sde")[i % 4],
    )
    for i in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Its autoencoder is diffusers', which a machine with a GPU need not have.
    toy_bundle = pytest.importorskip("support.toy_bundle")
    return toy_bundle.make_toy_bundle(tmp_path_factory.mktemp("toy"))


def pictures(
    folder: Path, device: str, dtype: str, together: bool, config: EngineConfig | None = None
) -> list[numpy.ndarray]:
    engine = EngineHandle(load_bundle(str(folder), device, dtype), config)
    engine.start()
    try:
        if together:
            return [future.result().pixels for future in engine.submit(REQUESTS)]
        return [engine.submit([request])[0].result().pixels for request in REQUESTS]
    finally:
        engine.stop()


def largest_difference(one: list[numpy.ndarray], other: list[numpy.ndarray]) -> int:
    pairs = zip(one, other, strict=True)
    return max(int(numpy.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_does_not_notice_its_neighbours(folder: Path, dtype: str) -> None:
    alone = pictures(folder, "cuda", dtype, together=False)
    together = pictures(folder, "cuda", dtype, together=True)
    # bf16 rounds differently with other GEMM shapes; a level or two of 255 is that rounding.
    assert largest_difference(alone, together) <= (1 if dtype == "float32" else 8)


def test_padding_to_buckets_changes_nothing(folder: Path) -> None:
    padded = pictures(folder, "cuda", "float32", True, EngineConfig(token_buckets=(512, 1024)))
    plain = pictures(folder, "cuda", "float32", True, EngineConfig(token_buckets=()))
    assert largest_difference(padded, plain) <= 1


def test_a_gpu_makes_the_pictures_of_a_cpu(folder: Path) -> None:
    on_gpu = pictures(folder, "cuda", "float32", together=True)
    on_cpu = pictures(folder, "cpu", "float32", together=True)
    assert largest_difference(on_gpu, on_cpu) <= 2
