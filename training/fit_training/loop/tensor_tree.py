"""A nested state in two parts: its tensors under flat names, and the rest as JSON.

Knows dicts, lists, tuples and plain values. Knows no files and nothing of what a state means.
In the JSON a tensor stands as {"$tensor": name}, a tuple as {"$tuple": [...]}, and a dict with a
key that is no text, or begins with "$", as {"$items": [[key, value], ...]}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def split_tree(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Take the tensors out of a tree.

    Args:
        tree: dicts (keys text or int), lists and tuples around tensors, text, numbers, None.

    Returns:
        the tensors, neither copied nor moved, named by their path: `network.blocks.0.weight`;
        and the tree without them, ready for `json.dumps`.

    Raises:
        ValueError: something else is in the tree; the message has its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _split(tree, "", tensors)


def join_tree(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Undo `split_tree`: the same types, keys, order and tensors.

    Raises:
        ValueError: `rest` names a tensor that is not there.
    """
    if isinstance(rest, list):
        return [join_tree(tensors, item) for item in rest]
    if not isinstance(rest, dict):
        return rest
    match rest:
        case {"$tensor": name}:
            if name not in tensors:
                raise ValueError(f"there is no tensor {name}")
            return tensors[name]
        case {"$tuple": items}:
            return tuple(join_tree(tensors, item) for item in items)
        case {"$items": items}:
            return {key: join_tree(tensors, item) for key, item in items}
    return {key: join_tree(tensors, item) for key, item in rest.items()}


def _split(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = path
        while name in tensors:  # {"a.b": x, "a": {"b": y}}
            name += "_"
        tensors[name] = node
        return {_TENSOR: name}
    if isinstance(node, list | tuple):
        items = [_split(item, _below(path, i), tensors) for i, item in enumerate(node)]
        return {_TUPLE: items} if isinstance(node, tuple) else items
    if isinstance(node, dict):
        pairs = [(key, _split(item, _below(path, key), tensors)) for key, item in node.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in node):
            return dict(pairs)
        if all(type(key) in (str, int) for key in node):
            return {_ITEMS: [list(pair) for pair in pairs]}
        raise ValueError(f"{path or 'state'} has keys that are neither text nor int")
    if node is None or type(node) in (str, bool, int, float):
        return node
    raise ValueError(f"{path or 'state'} is a {type(node).__name__}, which cannot be saved")


def _below(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
