"""A network that cannot be captured goes on without graphs: run as a program, silent if it does."""

import torch
from torch import Tensor

from fit_kernels import use_backend
from fit_kernels.attention import use_attention
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout
from support.on_gpu import DEVICE, TOLERANCE, error
from support.packed_steps import BUCKETS, Steps


def main() -> None:
    use_backend("fused", DEVICE)
    use_attention("fused")
    steps = Steps(torch.float32)
    step, plain = steps.draw(BUCKETS[0]), steps.network.denoise
    wanted = step.through(steps.network).double().cpu()

    def asking(tokens_TK: Tensor, layout: PackedLayout, modulation: Modulation) -> Tensor:
        out = plain(tokens_TK, layout, modulation)
        return out * (1.0 if float(out[0, 0]) < torch.inf else 0.0)

    steps.network.denoise = asking
    graphed = steps.graphed()
    assert graphed.obstacle, "it was captured"
    assert graphed.num_graphs == 0
    if DEVICE == "cuda":
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert error(step.through(graphed), wanted) <= TOLERANCE[torch.float32]
    assert graphed.missed == {"off": 1}


if __name__ == "__main__":
    main()
