"""On a GPU: graphs of the packed network give what the network gives, whatever was replayed before.

Under `TRITON_INTERPRET=1` recorded operators stand in for CUDA graphs, so that this file is proved.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from fit_kernels import use_backend
from fit_kernels.attention import chosen_attention, use_attention
from fit_models.compiled import compile_blocks
from fit_serve.engine.graphed_network import GraphedNetwork
from support import failed_capture
from support.on_gpu import CAN_RUN, DEVICE, DTYPES, INTERPRETED, TOLERANCE, WHY_NOT, error
from support.packed_steps import BUCKETS, STEPS, Steps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CAN_RUN, reason=WHY_NOT)]

ATTENTIONS = ("fused", "torch-varlen", "flash-attn-2", "flash-attn-3", "flash-attn-4")


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    torch.manual_seed(0)
    use_backend("fused", DEVICE)
    yield
    use_backend("reference")
    use_attention("auto")


@torch.inference_mode()
def poison(graphed: GraphedNetwork) -> None:
    for graphs in graphed._graphs.values():
        for step in (graph.step for graph in graphs):
            for values in (step.tokens_TK, step.rows_RM, step.output_TP):
                values.fill_(torch.nan)


def choose(name: str, dtype: torch.dtype, head_dim: int) -> None:
    """Choose an implementation, or skip with its own reason."""
    if name != "fused" and (DEVICE == "cpu" or dtype == torch.float32):
        pytest.skip(f"{name} takes half precision on CUDA only")
    try:
        use_attention(name)
        chosen_attention(dtype, torch.device(DEVICE), head_dim)
    except ValueError as reason:
        if name == "fused":
            raise
        pytest.skip(f"{name}: {reason}")


@pytest.mark.parametrize("dtype", DTYPES[-1:] if INTERPRETED else DTYPES)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_graphs_and_the_network_agree_for_random_mixes(name: str, dtype: torch.dtype):
    steps = Steps(dtype)
    choose(name, dtype, steps.network.config.head_dim)
    graphed = steps.graphed()
    assert graphed.obstacle is None
    for number in range(STEPS):
        step = steps.draw(BUCKETS[number % len(BUCKETS)])
        wanted = step.through(steps.network).double().cpu()
        poison(graphed)
        assert error(step.through(graphed), wanted) <= TOLERANCE[dtype]
    assert (graphed.hits, graphed.misses) == (STEPS, 0)


def test_a_replay_after_the_membership_changed_and_changed_back():
    use_attention("fused")
    steps = Steps(DTYPES[-1])
    graphed = steps.graphed()
    one, other = steps.draw(BUCKETS[0]), steps.draw(BUCKETS[0])
    before = one.through(graphed).clone()
    wanted = other.through(steps.network).double().cpu()
    assert error(other.through(graphed), wanted) <= TOLERANCE[DTYPES[-1]]
    assert torch.equal(one.through(graphed), before)
    assert (graphed.hits, graphed.misses) == (3, 0)


def test_a_network_that_asks_the_device_for_a_value_runs_without_graphs():
    """In a process of its own, for a failed capture is the end of random numbers on a GPU."""
    if INTERPRETED:
        return failed_capture.main()
    ran = subprocess.run(
        [sys.executable, "-m", "support.failed_capture"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(INTERPRETED, reason="the compiler does not know the interpreter")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_graphs_of_compiled_blocks_agree_with_the_network():
    use_attention("fused")
    steps = Steps(torch.bfloat16)
    drawn = [steps.draw(BUCKETS[number % len(BUCKETS)]) for number in range(STEPS)]
    wanted = [step.through(steps.network).double().cpu() for step in drawn]
    compile_blocks(steps.network)
    graphed = steps.graphed()
    for step, want in zip(drawn, wanted, strict=True):
        assert error(step.through(graphed), want) <= 4 * TOLERANCE[torch.bfloat16]
    assert (graphed.hits, graphed.misses) == (STEPS, 0)
