"""A state comes back from JSON and safetensors as it went in: types, keys, order, every bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from fit_training.loop.tensor_file import write_tensors
from fit_training.loop.tensor_tree import join_tree, split_tree

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex64]
DTYPES += [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def through_files(tree: Any) -> Any:
    tensors, rest = split_tree(tree)
    content = bytearray()
    write_tensors(tensors, content.extend)
    return join_tree(load(bytes(content)), json.loads(json.dumps(rest)))


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        like = (left.dtype, left.shape) == (right.dtype, right.shape)
        return like and bits(left) == bits(right)
    if isinstance(left, dict):
        keys = [(type(k), k) for k in left] == [(type(k), k) for k in right]
        return keys and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        both = zip(left, right, strict=False)
        return len(left) == len(right) and all(same(a, b) for a, b in both)
    return repr(left) == repr(right)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = torch.zeros(shape, dtype=dtype)
    raw = draw(st.binary(min_size=(n := tensor.numel() * dtype.itemsize), max_size=n))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    if n:
        tensor.view(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    return tensor.mT if tensor.ndim > 1 and draw(st.booleans()) else tensor


KEYS = st.text(max_size=3) | st.integers(0, 20) | st.sampled_from(["a", "a.b", "0", "$tensor"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | tensors()
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_every_tree_comes_back(tree: Any):
    assert same(through_files(tree), tree)


def test_an_optimizer_comes_back():
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.9, 0.99))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert same(through_files(state), state)
    assert split_tree({"optimizers": [state]})[0].keys() == {
        f"optimizers.0.state.{index}.{name}"
        for index in (0, 1)
        for name in ("step", "exp_avg", "exp_avg_sq")
    }


def test_names_that_meet_stay_apart():
    one, two = torch.tensor(1), torch.tensor(2)
    assert same(through_files({"a.b": one, "a": {"b": two}}), {"a.b": one, "a": {"b": two}})


def test_tensors_that_share_memory_come_back_apart():
    base = torch.arange(6.0)
    back = through_files([base, base[2:4], base])
    assert same(back, [base, base[2:4], base])
    back[0].zero_()
    assert same(back[1:], [base[2:4], base])


@pytest.mark.parametrize("what", [{1, 2}, Path("a"), b"bytes", 1j, torch.float32])
def test_what_has_no_place_in_json_is_named(what: object):
    with pytest.raises(ValueError, match=r"^a\.0 is a "):
        split_tree({"a": [what]})
    with pytest.raises(ValueError, match=r"^a has keys that are neither text nor int"):
        split_tree({"a": {True: 1}})


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"there is no tensor a\.b"):
        join_tree({}, split_tree({"a": {"b": torch.ones(1)}})[1])
