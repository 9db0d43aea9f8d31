"""Mixed traffic with cancels against a real server, for minutes: is memory flat, does it answer?

Usage: `python benchmarks/soak.py [--minutes 30] [--clients 24] [--json FILE] [-- flags of serve]`.
Starts `fit-serve serve` on a free port. Clients ask for pictures of all sizes, qualities, samplers
and priorities, some with deadlines, and one in eight goes away before its answer. Meanwhile
`/livez` is asked every 50 ms, and the server's resident memory is read every 5 s. The first fifth
of the time counts as warming up; memory is flat if the line through the rest rises by less than 2 %
an hour's worth of it, or less than 1 MiB over the run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

SIDES = (64, 80, 96, 112, 128, 160, 192)
WARM_UP = 0.2
FLAT_MIB = 1.0
FLAT_SHARE_AN_HOUR = 0.02


def body(rng: random.Random) -> dict[str, Any]:
    """A request of any kind."""
    asked: dict[str, Any] = {
        "class": rng.randrange(30),
        "height": rng.choice(SIDES),
        "width": rng.choice(SIDES),
        "seed": rng.randrange(2**31),
        "num_inference_steps": rng.choice((4, 8, 12, 20)),
        "guidance_scale": rng.choice((1.0, 2.5, 4.0)),
        "quality": rng.choice(("exact", "balanced", "fast")),
        "sampler": rng.choice(("euler", "euler", "heun", "sde")),
        "priority": rng.choice((0, 0, 0, -1, 1)),
        "output_format": rng.choice(("png", "jpeg", "webp")),
    }
    if rng.random() < 0.2:
        asked["deadline_ms"] = rng.choice((200, 2000, 20_000))
    return asked


async def client(http: httpx.AsyncClient, seed: int, until: float, ends: Counter[str]) -> None:
    """Ask one thing after another; sometimes do not wait for the answer."""
    rng = random.Random(seed)
    while time.monotonic() < until:
        patience = rng.uniform(0.01, 0.5) if rng.random() < 0.125 else 300.0
        try:
            answer = await http.post("/generate", json=body(rng), timeout=patience)
            ends[str(answer.status_code)] += 1
            if answer.status_code == 429:
                await asyncio.sleep(0.5)
        except httpx.TimeoutException:
            ends["gone away"] += 1


async def ask_livez(http: httpx.AsyncClient, until: float, seconds: list[float]) -> None:
    """How long the event loop takes to answer."""
    while time.monotonic() < until:
        began = time.perf_counter()
        (await http.get("/livez", timeout=30.0)).raise_for_status()
        seconds.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)


async def watch_memory(pid: int, until: float, samples: list[tuple[float, float]]) -> None:
    """Resident MiB of the server."""
    began = time.monotonic()
    while time.monotonic() < until:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        samples.append((time.monotonic() - began, int(found[1]) / 1024))
        await asyncio.sleep(5.0)


def rise_mib_per_s(samples: list[tuple[float, float]]) -> float:
    """Slope of the line of least squares."""
    count = len(samples)
    mean_t = sum(t for t, _ in samples) / count
    mean_m = sum(m for _, m in samples) / count
    spread = sum((t - mean_t) ** 2 for t, _ in samples)
    return sum((t - mean_t) * (m - mean_m) for t, m in samples) / spread if spread else 0.0


async def soak(url: str, pid: int, seconds: float, clients: int) -> dict[str, Any]:
    """Run all of it; gives the figures."""
    until = time.monotonic() + seconds
    ends: Counter[str] = Counter()
    livez: list[float] = []
    memory: list[tuple[float, float]] = []
    limits = httpx.Limits(max_connections=clients + 4)
    async with (
        httpx.AsyncClient(base_url=url, limits=limits, trust_env=False) as http,
        httpx.AsyncClient(base_url=url, trust_env=False) as other,
    ):
        await asyncio.gather(
            *(client(http, seed, until, ends) for seed in range(clients)),
            ask_livez(other, until, livez),
            watch_memory(pid, until, memory),
        )
        metrics = (await other.get("/metrics")).text
    warm = [sample for sample in memory if sample[0] >= WARM_UP * seconds]
    rise = rise_mib_per_s(warm) * (warm[-1][0] - warm[0][0])
    livez.sort()
    share_an_hour = rise_mib_per_s(warm) * 3600 / warm[0][1]
    return {
        "minutes": seconds / 60,
        "ends": dict(ends),
        "livez_ms": {
            name: round(1e3 * livez[min(int(share * len(livez)), len(livez) - 1)], 1)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        },
        "rss_mib": {"first": memory[0][1], "warm": warm[0][1], "last": warm[-1][1]},
        "rise_mib": round(rise, 2),
        "is_flat": rise < FLAT_MIB or share_an_hour < FLAT_SHARE_AN_HOUR,
        "left_running": [
            line for line in metrics.splitlines() if line.startswith("fit_num_requests_")
        ],
        "memory": [[round(t), round(m, 1)] for t, m in memory],
    }


def read_away(log: Iterable[str]) -> None:
    """Nobody wants it, but it must not fill its pipe."""
    for _ in log:
        pass


@contextlib.contextmanager
def server(flags: list[str]) -> Iterator[tuple[str, int]]:
    """A server of its own: (URL, process id)."""
    command = [sys.executable, "-m", "fit_serve", "serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"ready on (http://[\w.:\[\]-]+)", line):
                threading.Thread(target=read_away, args=(process.stderr,), daemon=True).start()
                yield found[1], process.pid
                break
        else:
            raise RuntimeError(f"the server ended with {process.wait()}")
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """Print the figures; exit code 1 if memory grows or something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="of fit-serve serve, after --")
    arguments = parser.parse_args()
    with server(arguments.flags) as (url, pid):
        figures = asyncio.run(soak(url, pid, 60 * arguments.minutes, arguments.clients))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in figures.items() if name != "memory"}))
    failed = [status for status in figures["ends"] if status.startswith("5") and status != "504"]
    sys.exit(0 if figures["is_flat"] and not failed else 1)


if __name__ == "__main__":
    main()
