"""What this device can do at best: bytes copied and bf16 products a second, measured here and now.

Usage: `python benchmarks/ceilings.py [--toy] [--rows FILE]`. Everything else is judged by these
figures, never by a datasheet. On random data: a product of zeros draws less power and runs faster.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measurement import Ledger, Measurement
from stopwatch import Stopwatch
from torch import Tensor

_COPY_BYTES = 2 * 2**30
_TOY_COPY_BYTES = 2 * 2**20
_PRODUCT_SIDE = 8192
_TOY_PRODUCT_SIDE = 128


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device.

    Attributes:
        copy: bytes a second of a large copy, read and written counted.
        product: floating-point operations a second of a large bf16 matrix product.
    """

    copy: float
    product: float

    @classmethod
    def measured(cls, stopwatch: Stopwatch, toy: bool) -> Ceilings:
        """Measure both."""
        return cls(copy_rate(stopwatch, toy), product_rate(stopwatch, toy))

    @classmethod
    def from_file(cls, path: Path) -> Ceilings:
        """As `main` wrote them."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def copy_rate(stopwatch: Stopwatch, toy: bool) -> float:
    """Bytes a second of a device-to-device copy far larger than any cache."""
    count = (_TOY_COPY_BYTES if toy else _COPY_BYTES) // 2
    source, target = torch.randint(0, 255, (2, count), dtype=torch.uint8, device=stopwatch.device)
    return 2 * count / stopwatch.time([lambda: target.copy_(source)]).median


def pass_rate(stopwatch: Stopwatch, num_bytes: float) -> float:
    """Bytes a second of PyTorch's own one-tensor kernel over so many bytes, read and written.

    A small operator cannot reach the rate of a large copy: filling and draining the device takes
    part of its time. This says what that costs at a size.
    """
    count = max(1, int(num_bytes) // 4)
    pairs = [
        (torch.randn(count, device=stopwatch.device, dtype=torch.bfloat16), _like(count, stopwatch))
        for _ in range(stopwatch.calls_for(num_bytes))
    ]
    calls = [lambda s=s, t=t: torch.neg(s, out=t) for s, t in pairs]
    return 4 * count / stopwatch.time(calls).median


def product_rate(stopwatch: Stopwatch, toy: bool) -> float:
    """Operations a second of a large square product."""
    side = _TOY_PRODUCT_SIDE if toy else _PRODUCT_SIDE
    return shape_rate(stopwatch, side, side, side)


def shape_rate(stopwatch: Stopwatch, rows: int, inner: int, columns: int) -> float:
    """Operations a second of a bf16 product [rows, inner] x [inner, columns], as a layer has it."""
    x, weight = (
        torch.randn(n, inner, device=stopwatch.device, dtype=torch.bfloat16)
        for n in (rows, columns)
    )
    seconds = stopwatch.time([lambda: x @ weight.t()] * 4).median
    return 2.0 * rows * inner * columns / seconds


def _like(count: int, stopwatch: Stopwatch) -> Tensor:
    return torch.empty(count, device=stopwatch.device, dtype=torch.bfloat16)


def main() -> None:
    """Measure, say, and write `ceilings.json` beside the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--rows", type=Path, help="append measurements here, JSON lines")
    arguments = parser.parse_args()
    toy = arguments.toy or not torch.cuda.is_available()
    with Stopwatch("cpu" if toy else "cuda", 0.01 if toy else 0.5) as stopwatch:
        first, second = (Ceilings.measured(stopwatch, toy) for _ in range(2))
    best = Ceilings(max(first.copy, second.copy), max(first.product, second.product))
    ledger = Ledger(arguments.rows)
    for name, unit in (("copy", "B"), ("product", "FLOP")):
        rates = [getattr(c, name) for c in (first, second)]
        ledger.put(
            Measurement(
                part="ceilings",
                case={"copy": "large copy", "product": "large bf16 product"}[name],
                ours="better of two",
                work=1e9,
                work_unit=unit,
                seconds={"better of two": 1e9 / max(rates)},
                note=f"for 1e9 {unit}; the two differ by {max(rates) / min(rates) - 1:.1%}",
            )
        )
    if arguments.rows is not None:
        file = arguments.rows.with_name("ceilings.json")
        file.write_text(json.dumps(asdict(best)), encoding="utf-8")


if __name__ == "__main__":
    main()
