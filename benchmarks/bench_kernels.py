"""The fused operators one by one: eager, compiled and fused, against the rate of a plain copy.

Usage: `python benchmarks/bench_kernels.py [--toy] [--seconds N] [--rows FILE] [--ceilings FILE]`,
or with `--predict [--bandwidth TB/s]` for the bytes each must move, without a GPU.

Bytes are those an ideal kernel moves (`kernel_cases`), so a way that moves more shows as a lower
share of the copy's rate. The second share is against PyTorch's own one-pass kernel over as many
bytes: what a launch of that size can reach. guided_step moves so little that only the second says
anything, and it is judged by that. Memory is measured, not the cache: see `stopwatch`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch._functorch.config
from bytes_moved import write_prediction
from ceilings import Ceilings, pass_rate
from kernel_cases import OPERATORS, Shape, bytes_of, require_gradients, run_forward
from measurement import Ledger, Measurement, spell_error
from stopwatch import Call, Stopwatch
from torch import Tensor

from fit_kernels import use_backend
from fit_models.config import named_config

PREDICTION = Path(__file__).parent / "results" / "predicted-bytes.md"
TARGET = 0.85
JUDGED_FROM_TOKENS = 4096
# A cold compiler may take so long for one operator: do not begin what would be cut off.
COMPILER_WAIT_S = 20.0
_SHAPES = (("FiTv2-XL/2", (8192, 4096, 512)), ("FiTv2-3B/2", (8192, 512)))
_TOY_SHAPES = (("FiTv2-toy/2", (5,)),)
_EAGER, _COMPILED, _FUSED = "eager", "compiled", "fused"
_BACKENDS = {_EAGER: "reference", _FUSED: "fused", _COMPILED: "compiled"}
_COPY, _PASS = "of copy", "of one pass"


class Case:
    """One operator at one shape, one direction."""

    def __init__(self, operator: str, model: str, tokens: int, backward: bool, toy: bool) -> None:
        self.operator, self.backward = operator, backward
        self.shape = Shape(tokens, named_config(model))
        self.dtype = torch.float32 if toy else torch.bfloat16
        self.num_bytes = bytes_of(operator, self.shape, self.dtype, backward)
        direction = " backward" if backward else ""
        self.name = f"{operator}{direction} {tokens} x {self.shape.config.hidden_size}"
        judged = tokens >= JUDGED_FROM_TOKENS and model == "FiTv2-XL/2" and not backward
        self.target = TARGET if judged else None

    def calls(self, stopwatch: Stopwatch) -> list[Call]:
        """One call for each of enough sets of buffers."""
        count = stopwatch.calls_for(self.num_bytes)
        return [self._call(stopwatch.device) for _ in range(count)]

    def _call(self, device: torch.device) -> Call:
        inputs = OPERATORS[self.operator](self.shape, self.dtype, device)
        if not self.backward:
            return lambda: run_forward(self.operator, inputs)
        wanted = require_gradients(inputs)
        outputs = run_forward(self.operator, inputs)
        gradients = [torch.randn_like(out) for out in outputs]

        def call() -> tuple[Tensor, ...]:
            return torch.autograd.grad(outputs, wanted, gradients, retain_graph=True)

        return call


def cases(toy: bool) -> Iterator[Case]:
    """What is judged first, what can be missed last."""
    for model, all_tokens in _TOY_SHAPES if toy else _SHAPES:
        for backward in (False, True):
            for tokens in all_tokens:
                for operator in OPERATORS:
                    yield Case(operator, model, tokens, backward, toy)


def time_way(case: Case, way: str, stopwatch: Stopwatch, into: Measurement) -> None:
    """Time a case one way, or write down why not."""
    into.missing.pop(way, None)
    try:
        use_backend(_BACKENDS[way], stopwatch.device)
        with torch.set_grad_enabled(case.backward):
            timing = stopwatch.time(case.calls(stopwatch))
    except Exception as error:  # a compiler's or a driver's; the other ways still count
        into.missing[way] = spell_error(error)
        return
    finally:
        use_backend("reference")
    into.seconds[way], into.best_seconds[way] = timing.median, timing.best
    into.methods[way] = timing.method


def measure(
    toy: bool, stopwatch: Stopwatch, ceilings: Ceilings, ledger: Ledger, deadline: float
) -> None:
    """Eager and fused of every case, then compiled of every case, while the time lasts.

    Compiled comes last because a compiler's wait is long, and it is the least of the three.
    """
    measured: list[tuple[Case, Measurement]] = []
    for case in cases(toy):
        into = Measurement("kernels", case.name, _FUSED, _EAGER, case.num_bytes, "B")
        into.missing[_COMPILED] = "not yet"
        measured.append((case, into))
        if time.monotonic() > deadline:
            into.missing.update(dict.fromkeys(_BACKENDS, "out of time"))
        else:
            one_pass = pass_rate(stopwatch, case.num_bytes)
            judges = {_COPY: ceilings.copy, _PASS: one_pass}
            if case.operator == "guided_step":
                judges = dict(reversed(judges.items()))
            into.ceilings, into.target = judges, case.target
            for way in (_EAGER, _FUSED):
                time_way(case, way, stopwatch, into)
        ledger.put(into)
    wait = 0.0 if toy else COMPILER_WAIT_S
    for case, into in measured:
        if time.monotonic() > deadline - wait:
            into.missing[_COMPILED] = "out of time"
        else:
            time_way(case, _COMPILED, stopwatch, into)
        ledger.put(into)


def main() -> None:
    """Measure, or predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predict", action="store_true", help=f"write {PREDICTION.name}")
    parser.add_argument("--bandwidth", type=float, default=4.3, help="TB/s, of --predict")
    parser.add_argument("--toy", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--seconds", type=float, default=150.0, help="start no case after that")
    parser.add_argument("--rows", type=Path, help="append measurements here, JSON lines")
    parser.add_argument("--ceilings", type=Path, help="take these; measured here if left out")
    arguments = parser.parse_args()
    if arguments.predict:
        print(write_prediction(PREDICTION, arguments.bandwidth * 1e12))
        return
    deadline = time.monotonic() + arguments.seconds
    device = "cpu" if arguments.toy else "cuda"
    torch.manual_seed(0)
    # A backward is timed many times over one forward: its compiled form must keep what it read.
    torch._functorch.config.donated_buffer = False
    with Stopwatch(device, 0.005 if arguments.toy else 0.1) as stopwatch:
        file = arguments.ceilings
        taken = Ceilings.from_file(file) if file else Ceilings.measured(stopwatch, arguments.toy)
        measure(arguments.toy, stopwatch, taken, Ledger(arguments.rows), deadline)


if __name__ == "__main__":
    main()
