"""Which Lumina network released tensors belong to, told by their names and shapes.

Values are never looked at. Two things shapes cannot say: how many heads a class-conditional network
has, which is taken from the named sizes, and whether it is Flag-DiT or Large-DiT, which has to be
declared, for a checkpoint of either loads into the other and makes noise.

Dimension key: D width, M width of the condition.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fit_models.networks.flag_dit_config import NAMED_FLAG_DIT_CONFIGS, FlagDiTConfig
from fit_models.networks.lumina_config import LuminaConfig
from fit_models.networks.lumina_next_config import NAMED_LUMINA_NEXT_CONFIGS
from fit_models.networks.lumina_t2i_config import NAMED_LUMINA_T2I_CONFIGS
from fit_models.networks.next_dit_config import NAMED_NEXT_DIT_CONFIGS, NextDiTConfig

Shapes = Mapping[str, tuple[int, ...]]

_ADALN = "layers.0.adaLN_modulation.1.weight"
_EMBEDDER, _LABELS = "x_embedder.weight", "y_embedder.embedding_table.weight"
_QUERIES, _KEYS = "layers.0.attention.wq.weight", "layers.0.attention.wk.weight"
_Q_NORM, _MLP = "layers.0.attention.q_norm.weight", "layers.0.feed_forward.w1.weight"
CAPTIONS_MARK = "cap_embedder.0.weight"
"""The name that a network has which reads captions."""
_GATE, _CAPTIONS = "layers.0.attention.gate", CAPTIONS_MARK
_TELLING = (_ADALN, _EMBEDDER, _QUERIES, _KEYS, _MLP)
_LATENT_CHANNELS = 4


def lumina_family(shapes: Shapes) -> str:
    """Say "flag-dit" (or Large-DiT), "next-dit", "lumina-next" or "lumina-t2i".

    Raises:
        ValueError: the tensors are of a network that is not here, or of none that is known.
    """
    if "patch_embedder.proj.weight" in shapes and "layers.0.attn2.to_q.weight" in shapes:
        raise ValueError("weights: this is diffusers' copy of Lumina-Next; translate its names")
    if "layers.0.attention.qkv.weight" in shapes:
        raise ValueError("weights: this is Lumina-Image 2.0, which is not here")
    if missing := [name for name in _TELLING if name not in shapes]:
        raise ValueError(f"weights: not a whole Lumina network; missing {', '.join(missing)}")
    vectors = shapes[_ADALN][0] // shapes[_QUERIES][0]
    if _CAPTIONS in shapes:
        if "eol_token" in shapes:
            return "lumina-t2i"
        if "layers.0.attention_norm2.weight" in shapes:
            return "lumina-next"
        raise ValueError(
            "weights: this is Lumina-Next as it was before 2024-05-31, whose blocks are others; "
            "take the files of the repository's present revision (6.51 GB, not 8.42)"
        )
    families = {6: "flag-dit", 4: "next-dit"}
    if _LABELS not in shapes or vectors not in families:
        raise ValueError(
            f"weights: a Lumina network has captions, or labels with 4 or 6 vectors of adaLN a "
            f"block; here are {vectors}"
        )
    return families[vectors]


def lumina_config(
    shapes: Shapes, prediction: str | None = None, num_heads: int | None = None
) -> LuminaConfig:
    """Infer the configuration of a Lumina network from its tensors' shapes.

    Args:
        shapes: of all tensors, by name.
        prediction: "velocity" (Flag-DiT) or "noise" (Large-DiT); only these two need it.
        num_heads: of class-conditional networks; None takes those of the named size.

    Returns:
        the config of the family, with what shapes cannot say as in the named sizes.

    Raises:
        ValueError: as `lumina_family`, or heads or prediction are needed and not given.
    """
    family = lumina_family(shapes)
    match family:
        case "flag-dit":
            if prediction is None:
                raise ValueError(
                    "prediction: Flag-DiT and Large-DiT have the same tensors; say 'velocity' for "
                    "Flag-DiT or 'noise' for Large-DiT"
                )
            fields = _fields(shapes, num_heads, NAMED_FLAG_DIT_CONFIGS)
            labels = shapes[_LABELS][0] - 1
            return _checked(
                FlagDiTConfig(**fields, num_classes=labels, prediction=prediction), shapes
            )
        case "next-dit":
            fields = _fields(shapes, num_heads, NAMED_NEXT_DIT_CONFIGS)
            return _checked(NextDiTConfig(**fields, num_classes=shapes[_LABELS][0] - 1), shapes)
        case "lumina-next":
            base = NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"]
            return _checked(replace(base, **_text_fields(shapes)), shapes)
        case "lumina-t2i":
            base = NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"]
            return _checked(replace(base, **_text_fields(shapes)), shapes)
    raise AssertionError(family)


def _fields(
    shapes: Shapes, num_heads: int | None, named: Mapping[str, LuminaConfig]
) -> dict[str, Any]:
    """What the tensors of any family tell, and the heads."""
    width, token_channels = shapes[_EMBEDDER]
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
    if num_heads is None:
        alike = {c.num_heads for c in named.values() if (c.hidden_size, c.depth) == (width, depth)}
        if not alike:
            raise ValueError(
                f"num_heads: shapes do not tell, and no named size has hidden_size {width} and "
                f"depth {depth}; give it"
            )
        num_heads = alike.pop()
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must divide hidden_size {width}")
    key_heads = shapes[_KEYS][0] * num_heads // width
    return {
        "hidden_size": width,
        "depth": depth,
        "num_heads": num_heads,
        "num_kv_heads": None if key_heads == num_heads else key_heads,
        "patch_size": int((token_channels // _LATENT_CHANNELS) ** 0.5),
        "qk_norm": _Q_NORM in shapes,
    }


def _text_fields(shapes: Shapes) -> dict[str, Any]:
    fields = _fields(shapes, shapes[_GATE][0], {})
    return {**fields, "caption_channels": shapes[_CAPTIONS][0]}


def _checked(config: LuminaConfig, shapes: Shapes) -> LuminaConfig:
    expected = {
        _EMBEDDER: (config.hidden_size, config.token_channels),
        _KEYS: (config.key_heads * config.head_dim, config.hidden_size),
        _MLP: (config.mlp_hidden, config.hidden_size),
    }
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ValueError(f"weights: {name} has shape {list(shapes[name])}, not {list(shape)}")
    return config
