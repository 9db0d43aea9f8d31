"""The discrete noise path equals the authors' float64 tables and spaces its steps as they do."""

from __future__ import annotations

import pytest
import torch

from fit_models.diffusion.discrete import (
    DiscretePath,
    discrete_path,
    even_timesteps,
    leading_timesteps,
    path_sigma,
    respaced_path,
    strided_timesteps,
    trained_path,
)
from support.golden import Case, load_family

DIT, PORT = load_family("dit"), load_family("dit_diffusers")


def path_of(respacing: str) -> DiscretePath:
    if not respacing:
        return trained_path()
    if respacing.startswith("ddim"):
        return discrete_path("strided", int(respacing.removeprefix("ddim")))
    return discrete_path("even", int(respacing))


def recorded_rows(case: Case, n: int) -> list[int]:
    return sorted({*range(0, n, case.params["every"]), n - 1})


@pytest.mark.parametrize("case_name", DIT.case_names("tables"))
def test_the_tables_equal_the_original(case_name: str) -> None:
    case = DIT.case(case_name)
    path = path_of(case.params["respacing"])
    rows = recorded_rows(case, len(path.timesteps))
    tables = {
        name: torch.from_numpy(getattr(path, name))[rows]
        for name in case.expected
        if name != "timesteps"
    }
    case.check({"timesteps": torch.tensor(path.timesteps)[rows], **tables})


@pytest.mark.parametrize("case_name", PORT.case_names("timesteps"))
def test_leading_steps_equal_those_of_diffusers(case_name: str) -> None:
    case = PORT.case(case_name)
    kept = leading_timesteps(case.params["steps"])
    case.check({"timesteps": torch.tensor(kept[::-1])})


@pytest.mark.parametrize(
    ("respacing", "first", "last", "total"),
    [
        ("250", [0, 4, 8, 12, 16, 20], [987, 991, 995, 999], 124875),
        ("50", [0, 20, 41, 61, 82, 102], [938, 958, 979, 999], 24975),
        ("25", [0, 42, 83, 125, 166, 208], [874, 916, 957, 999], 12487),
        ("ddim50", [0, 20, 40, 60, 80, 100], [920, 940, 960, 980], 24500),
        ("ddim250", [0, 4, 8, 12, 16, 20], [984, 988, 992, 996], 124500),
    ],
)
def test_the_kept_steps_are_the_published_ones(
    respacing: str, first: list[int], last: list[int], total: int
) -> None:
    kept = path_of(respacing).timesteps
    assert (list(kept[:6]), list(kept[-4:]), sum(kept)) == (first, last, total)


def test_both_kinds_of_stride_agree_where_the_stride_is_whole() -> None:
    for steps in (1, 2, 8, 10, 50, 125, 250, 500, 1000):
        assert leading_timesteps(steps) == strided_timesteps(steps)


def test_every_number_of_steps_has_as_many() -> None:
    for steps in range(1, 1001):
        for spacing in (even_timesteps, leading_timesteps):
            kept = spacing(steps)
            assert len(set(kept)) == steps
            assert kept == tuple(sorted(kept))
            assert (kept[0], kept[-1] < 1000) == (0, True)


def test_levels_of_noise_lie_between_image_and_noise() -> None:
    assert path_sigma(0) == 0.0
    assert path_sigma(999) == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("spacing", "steps", "message"),
    [
        ("even", 0, r"num_inference_steps is 0; it must be in 1\.\.1000"),
        ("leading", 1001, r"num_inference_steps is 1001; it must be in 1\.\.1000"),
        ("strided", 300, "no whole stride .* a stride of 4 gives 250"),
        ("karras", 10, "spacing 'karras' is unknown; known: even, strided, leading"),
    ],
)
def test_what_makes_no_path_is_refused(spacing: str, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discrete_path(spacing, steps)


@pytest.mark.parametrize("timesteps", [[], [3, 3], [5, 2], [-1, 4], [0, 1000]])
def test_timesteps_must_rise_within_the_trained_ones(timesteps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must rise, within 0\.\.999"):
        respaced_path(timesteps)
