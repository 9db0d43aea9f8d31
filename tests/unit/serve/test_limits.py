"""A refusal names field, value and limit; what is not refused can be done."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fit_serve.errors import InvalidRequest
from fit_serve.request import GenerationRequest
from support.fake_engine import CLASS_NAMES, LIMITS

GOOD = GenerationRequest("gen-1", class_label=1, height=64, width=96, seed=5)


def refusal(**changes: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        LIMITS.check(replace(GOOD, **changes))  # pyright: ignore[reportArgumentType]
    return caught.value


def test_the_smallest_and_the_longest_images_are_allowed() -> None:
    LIMITS.check(replace(GOOD, height=32, width=32))
    LIMITS.check(replace(GOOD, height=32, width=128 * 16))
    LIMITS.check(replace(GOOD, height=256, width=256))


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"height": 100}, "height", ["100", "multiple of 16", "96", "112"]),
        ({"width": 16}, "width", ["16", "32"]),
        ({"height": 0}, "height", ["0", "32"]),
        ({"height": -64}, "height", ["-64", "32"]),
        ({"height": 512, "width": 512}, "height", ["512", "1024", "256"]),
        ({"height": 32, "width": 16 * 10**30}, "width", ["256", "bits"]),
        ({"num_images": 17}, "num_images", ["17", "16"]),
        ({"num_images": 0}, "num_images", ["0", "1"]),
        ({"num_inference_steps": 251}, "num_inference_steps", ["251", "250"]),
        ({"guidance_scale": 0.5}, "guidance_scale", ["0.5", "1"]),
        ({"guidance_scale": math.nan}, "guidance_scale", ["nan", "20"]),
        ({"guidance_scale": math.inf}, "guidance_scale", ["inf", "20"]),
        ({"guidance_interval": (0.0, 1.5)}, "guidance_interval", ["1.5", "1.0"]),
        ({"guidance_interval": (0.5, 0.5)}, "guidance_interval", ["0.5", "empty"]),
        ({"guidance_interval": (math.nan, 1.0)}, "guidance_interval", ["nan"]),
        ({"seed": -1}, "seed", ["-1", "0"]),
        ({"seed": 2**63}, "seed", [str(2**63), str(2**63 - 1)]),
        ({"sampler": "dopri5"}, "sampler", ["dopri5", "euler, heun"]),
        ({"output_format": "gif"}, "output_format", ["gif", "png, jpeg, webp"]),
        ({"class_label": 6}, "class", ["6", "0 to 5"]),
    ],
)
def test_a_refusal_names_field_value_and_limit(
    changes: dict[str, object], param: str, said: list[str]
) -> None:
    error = refusal(**changes)
    assert error.param == param
    for words in [param, *said]:
        assert words in error.message


@given(rows=st.integers(2, 10**6), columns=st.integers(2, 10**6))
def test_the_size_that_would_fit_does_fit(rows: int, columns: int) -> None:
    assume(rows * columns > LIMITS.max_tokens)
    height, width = LIMITS.largest_like(rows, columns)
    LIMITS.check(replace(GOOD, height=height, width=width))


@given(height=st.integers(-100, 1100), width=st.integers(-100, 1100))
def test_exactly_the_sizes_of_the_grid_are_allowed(height: int, width: int) -> None:
    possible = (
        min(height, width) >= 32
        and height % 16 == width % 16 == 0
        and height * width <= 256 * 16 * 16
    )
    if possible:
        LIMITS.check(replace(GOOD, height=height, width=width))
    else:
        assert refusal(height=height, width=width).param in ("height", "width")


@pytest.mark.parametrize(
    ("named", "label"),
    [
        (2, 2),
        ("2", 2),
        ("sunflower", 1),
        ("Sun Flower", 1),
        ("CAR SIDE", 2),
        ("car-side", 2),
        ("SeaHorse", 3),
        ("sea_horse", 3),
        ("crane, machine", 5),
        ("machine", 5),
    ],
)
def test_a_class_is_called_by_id_or_name(named: int | str, label: int) -> None:
    assert LIMITS.class_label(named) == label


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_every_class_is_found_by_its_own_name(label: int) -> None:
    assert LIMITS.class_label(CLASS_NAMES[label]) == label


def test_a_number_that_is_a_name_is_a_name() -> None:
    assert replace(LIMITS, class_names=("2", "1", "0")).class_label("0") == 2


@pytest.mark.parametrize(("named", "near"), [("sunflwer", "sunflower"), ("horse", "sea horse")])
def test_an_unknown_class_is_refused_with_near_matches(named: str, near: str) -> None:
    with pytest.raises(InvalidRequest, match=f"did you mean.*{near}") as caught:
        LIMITS.class_label(named)
    assert (caught.value.param, caught.value.code) == ("class", "unknown_class")


def test_a_name_of_two_classes_is_refused_with_their_ids() -> None:
    with pytest.raises(InvalidRequest, match=r"4 \(crane, bird\) or 5 \(crane, machine\)"):
        LIMITS.class_label("crane")


@given(named=st.text(max_size=300) | st.integers())
def test_any_other_class_is_refused_in_a_short_printable_line(named: str | int) -> None:
    said = ""
    try:
        label = LIMITS.class_label(named)
    except InvalidRequest as error:
        label, said = 0, error.message
    assert 0 <= label < len(CLASS_NAMES)
    assert said == "" or said.isprintable()
    assert len(said) < 400
