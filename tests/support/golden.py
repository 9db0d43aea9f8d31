"""Golden vectors: what other people's code computed, and the weights it computed it with.

Knows the file pair `<family>.safetensors` + `<family>.json` in `tests/golden/` and the formula that
makes a network's weights from its state-dict keys. Knows no network of ours.

    family = load_family("fitv2")
    for case in family.cases("forward"):
        weights = family.weights(case.model)      # official key -> tensor
        case.check({"out": run(case.config, weights, case.params, case.inputs)})
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parents[1] / "golden"

# --- weights -------------------------------------------------------------------------------------


def base_values(shape: Sequence[int], position: int, fill: Mapping[str, float]) -> np.ndarray:
    """Values of the tensor at `position` in the sorted key list, before any rule; float64.

    value_i = amp / sqrt(f) * sin(a*i + b*position + c*i*position + q*((i*i) mod m)), with i the
    flat index in C order and f the fan-in (product of all dimensions but the first; `one_d_fan`
    for tensors of fewer than two). With q = 0 every matrix has rank two; the last term lifts that.
    """
    count = math.prod(shape)
    i = np.arange(count, dtype=np.int64)
    flat = i.astype(np.float64)
    phase = fill["a"] * flat + fill["b"] * position + fill["c"] * flat * position
    if fill.get("q", 0.0):
        phase = phase + fill["q"] * ((i * i) % int(fill["mod"])).astype(np.float64)
    fan_in = math.prod(shape[1:]) if len(shape) >= 2 else fill.get("one_d_fan", 25)
    return (fill["amp"] / math.sqrt(fan_in) * np.sin(phase)).reshape(tuple(shape))


def apply_rules(
    key: str,
    position: int,
    value: np.ndarray,
    shapes: Mapping[str, Sequence[int]],
    rules: Iterable[Mapping[str, Any]],
) -> np.ndarray | None:
    """Apply the rules whose pattern matches the whole key, in order; None means: do not fill.

    A rule has a `key` pattern and one of `skip`, `offset` with `mul` (offset + mul * value), or
    `alpha` (a ternary scale: its sign from the position, its size from the sibling's fan-in).
    """
    for rule in rules:
        if not re.fullmatch(rule["key"], key):
            continue
        if rule.get("skip"):
            return None
        if "alpha" in rule:
            fan_in = shapes[key.rsplit(".", 1)[0] + ".weight"][-1]
            scale = (-1.0 if position % 3 == 0 else 1.0) * rule["alpha"] / math.sqrt(fan_in)
            value = np.full_like(value, scale * (1.0 + 0.25 * math.sin(1.3 * position)))
        else:
            value = rule.get("offset", 0.0) + rule.get("mul", 1.0) * value
    return value


def make_weights(
    shapes: Mapping[str, Sequence[int]],
    fill: Mapping[str, float],
    rules: Sequence[Mapping[str, Any]] = (),
) -> dict[str, torch.Tensor]:
    """Make {key: float32 tensor} for a mapping of *all* official keys to their shapes.

    Positions count every key in plain ASCII order, skipped ones too: one key missing or too many
    shifts all that follow.
    """
    weights: dict[str, torch.Tensor] = {}
    for position, key in enumerate(sorted(shapes)):
        base = base_values(shapes[key], position, fill)
        value = apply_rules(key, position, base, shapes, rules)
        if value is not None:
            weights[key] = torch.from_numpy(np.ascontiguousarray(value.astype(np.float32)))
    return weights


def fill_weights(
    module: torch.nn.Module, fill: Mapping[str, float], rules: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Fill a module whose state dict has exactly the official keys, in place, dtype kept."""
    state = module.state_dict()
    weights = make_weights({key: tuple(t.shape) for key, t in state.items()}, fill, rules)
    with torch.no_grad():
        for key, value in weights.items():
            state[key].copy_(value)


def checksum(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Sum, sum of absolute values and number of elements, as the sidecar's `check` records them."""
    return {
        "sum": sum(float(w.double().sum()) for w in weights.values()),
        "sum_abs": sum(float(w.double().abs().sum()) for w in weights.values()),
        "count": sum(w.numel() for w in weights.values()),
    }


# Worst excess of every case that was compared in this process: (family, case) -> tolerances.
PARITY: dict[tuple[str, str], float] = {}

# --- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One recorded run. `op` says of what (sidecar, "ops"); tolerances are absolute."""

    family: str
    name: str
    op: str
    model: str | None  # key into the family's models; None for pure tables
    config: dict[str, Any]  # official constructor arguments of that model
    rules: list[dict[str, Any]]
    fill: dict[str, float]
    params: dict[str, Any]  # scalar arguments of the run
    inputs: dict[str, torch.Tensor]
    expected: dict[str, torch.Tensor]
    tol: dict[str, float]  # one limit per expected tensor
    tol_rows: dict[str, list[float]]  # for some tensors a tighter limit per index of dimension 0
    meaning: dict[str, str]
    note: str

    def limits(self, name: str) -> torch.Tensor:
        """The largest difference allowed to each element of an expected tensor, float64."""
        want = self.expected[name]
        limits = torch.full(want.shape, self.tol[name], dtype=torch.float64)
        if name in self.tol_rows:
            rows = torch.tensor(self.tol_rows[name], dtype=torch.float64)
            limits = limits.minimum(rows.reshape(-1, *[1] * (want.ndim - 1)).expand(want.shape))
        return limits

    def diff(self, name: str, actual: torch.Tensor) -> float:
        """Largest absolute difference to the expected tensor; inf on NaN or another shape."""
        want, actual = self.expected[name], actual.detach().cpu()
        if actual.shape != want.shape:
            return math.inf
        if want.numel() == 0:
            return 0.0
        largest = (actual.double() - want.double()).abs().max().item()
        return math.inf if math.isnan(largest) else largest

    def excess(self, name: str, actual: torch.Tensor) -> float:
        """Largest difference in units of its tolerance: at most 1 passes; inf on NaN or shape."""
        want, actual = self.expected[name], actual.detach().cpu()
        if actual.shape != want.shape:
            return math.inf
        if want.numel() == 0:
            return 0.0
        difference = (actual.double() - want.double()).abs()
        ratio = torch.where(difference == 0, 0.0, difference / self.limits(name))
        return math.inf if bool(ratio.isnan().any()) else ratio.max().item()

    def check(
        self, actual: Mapping[str, torch.Tensor], scale: float = 1.0, partial: bool = False
    ) -> dict[str, float]:
        """Compare with what was recorded and return the largest differences.

        Raises AssertionError with every tensor above `scale` tolerances, every tensor not
        produced (unless `partial`) and every name that was never recorded.
        """
        wrong = [f"{name}: not a recorded tensor" for name in actual if name not in self.expected]
        differences: dict[str, float] = {}
        largest = 0.0
        for name, want in self.expected.items():
            if name not in actual:
                wrong += [] if partial else [f"{name}: not produced"]
                continue
            differences[name] = self.diff(name, actual[name])
            excess = self.excess(name, actual[name])
            largest = max(largest, excess)
            if not excess <= scale:
                wrong.append(
                    f"{name}: {excess:.3g} x tolerance {self.tol[name]:.1e}, difference "
                    f"{differences[name]:.3e}, shape {tuple(actual[name].shape)}, "
                    f"expected {tuple(want.shape)}"
                )
        if not differences and not wrong:
            wrong.append("nothing was compared")
        if wrong:
            raise AssertionError(f"{self.family}/{self.name}: " + "; ".join(wrong))
        key = (self.family, self.name)
        PARITY[key] = max(PARITY.get(key, 0.0), largest)
        return differences


class Family:
    """All cases recorded from one source repository."""

    def __init__(self, name: str, folder: Path = FOLDER) -> None:
        self.name = name
        sidecar = (folder / f"{name}.json").read_text(encoding="utf-8")
        self.meta: dict[str, Any] = json.loads(sidecar)
        self.tensors: dict[str, torch.Tensor] = load_file(folder / f"{name}.safetensors")

    def model_names(self) -> list[str]:
        """Names of the models the cases were recorded with."""
        return list(self.meta["models"])

    def config(self, model: str) -> dict[str, Any]:
        """Official constructor arguments of a model."""
        return dict(self.meta["models"][model]["config"])

    def rules(self, model: str) -> list[dict[str, Any]]:
        """Fill rules of a model."""
        return list(self.meta["models"][model]["rules"])

    def fill(self, model: str) -> dict[str, float]:
        """Fill constants of a model: its own, or the family's."""
        return dict(self.meta["models"][model].get("fill", self.meta["fill"]))

    def shapes(self, model: str) -> dict[str, tuple[int, ...]]:
        """All official state-dict keys of a model with their shapes."""
        state = self.meta["models"][model]["state_dict"]
        return {key: tuple(shape) for key, shape in state.items()}

    def weights(self, model: str) -> dict[str, torch.Tensor]:
        """Official key -> float32 tensor, computed from the formula; skipped keys are absent."""
        return make_weights(self.shapes(model), self.fill(model), self.rules(model))

    def case_names(self, op: str | None = None) -> list[str]:
        """Names of all cases, or of those of one op."""
        return [n for n, case in self.meta["cases"].items() if op is None or case["op"] == op]

    def case(self, name: str) -> Case:
        """Load one case."""
        case = self.meta["cases"][name]
        model, outputs = case.get("model"), case["outputs"]
        return Case(
            family=self.name,
            name=name,
            op=case["op"],
            model=model,
            config=self.config(model) if model else {},
            rules=self.rules(model) if model else [],
            fill=self.fill(model) if model else {},
            params=dict(case.get("params", {})),
            inputs={key: self.tensors[tensor] for key, tensor in case.get("inputs", {}).items()},
            expected={key: self.tensors[out["tensor"]] for key, out in outputs.items()},
            tol={key: float(out["tol"]) for key, out in outputs.items()},
            tol_rows={key: out["tol_rows"] for key, out in outputs.items() if "tol_rows" in out},
            meaning={key: out.get("meaning", "") for key, out in outputs.items()},
            note=case.get("note", ""),
        )

    def cases(self, op: str | None = None) -> Iterator[Case]:
        """All cases, or those of one op, in the recorded order."""
        return (self.case(name) for name in self.case_names(op))


def families(folder: Path = FOLDER) -> list[str]:
    """Names of the families whose two files are there."""
    return sorted(p.stem for p in folder.glob("*.json") if p.with_suffix(".safetensors").exists())


def load_family(name: str) -> Family:
    """Load a family from `tests/golden/`."""
    return Family(name)


def load_case(family: str, case: str) -> Case:
    """Load one case, e.g. `load_case("fitv2", "forward_3x5")`."""
    return Family(family).case(case)
