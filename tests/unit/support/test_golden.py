"""The golden files are whole, the weight formula gives the recorded weights, the check can fail."""

import math

import pytest
import torch

from support.golden import checksum, families, load_case, load_family

FAMILIES = families()


def test_there_are_golden_families():
    assert {"fitv2", "fitv2_rope", "fitv2_samplers"} <= set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_every_model_have_the_recorded_checksum(name: str):
    family = load_family(name)
    for model in family.model_names():
        recorded = family.meta["models"][model]["check"]
        ours = checksum(family.weights(model))
        assert ours["count"] == recorded["count"], model
        assert math.isclose(ours["sum"], recorded["sum"], abs_tol=1e-3), model
        assert math.isclose(ours["sum_abs"], recorded["sum_abs"], abs_tol=1e-3), model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_case_loads_and_agrees_with_itself(name: str):
    for case in load_family(name).cases():
        assert case.check(case.expected).keys() == case.expected.keys()


def test_the_check_sees_a_wrong_value_a_nan_a_shape_and_an_absence():
    case = load_case("fitv2", "forward_3x5")
    (name,) = case.expected
    want = case.expected[name]
    nan = want.clone()
    nan.view(-1)[0] = math.nan
    for wrong in (want + 1.5 * case.tol[name], nan, want[:0], want.unsqueeze(0)):
        with pytest.raises(AssertionError, match=f"{case.name}: {name}"):
            case.check({name: wrong})
    with pytest.raises(AssertionError, match="not produced"):
        case.check({})
    with pytest.raises(AssertionError, match="nothing was compared"):
        case.check({}, partial=True)
    with pytest.raises(AssertionError, match="not a recorded tensor"):
        case.check({name: want, "invented": want})


def test_rows_have_their_own_tolerance():
    family = load_family("fitv2_samplers")
    case, name = next((c, n) for c in family.cases() for n in c.tol_rows)
    want, rows = case.expected[name], case.tol_rows[name]
    tightest = rows.index(min(rows))
    moved = want.double()
    moved[tightest] += 2 * rows[tightest]
    assert case.excess(name, moved) == pytest.approx(2, rel=1e-3)
    assert case.excess(name, want + torch.zeros(())) == 0
