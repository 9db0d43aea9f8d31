"""All that is loaded to serve one model: a folder in Hugging Face layout.

    model_index.json      components, name, id2label
    transformer/          config.json and weights of the network
    vae/                  the autoencoder, as diffusers stores it
    text_encoder/, tokenizer/   of networks that read captions, see `fit_models.text_encoder`
    scheduler/            scheduler_config.json: what a request gets when it does not say;
                          step_cache.json: how the prediction behaves, if it was measured

Knows folders and files; not devices' speed, requests or engines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fit_models.adapter import load_adapter
from fit_models.adapter_merge import merge_adapters
from fit_models.autoencoder import Autoencoder
from fit_models.checkpoint import load_weights, save_weights
from fit_models.config import ModelConfig
from fit_models.device import resolve_device, resolve_dtype
from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.step_cache import GENERIC_PROFILE, PredictionProfile
from fit_models.families import (
    ALL_SAMPLERS,
    ClassNetwork,
    Network,
    NetworkConfig,
    TextConfig,
    TextNetwork,
    caption_reading,
    empty_network,
    family_named,
    family_of,
    placement,
    samplers_of,
)
from fit_models.networks.fitv2 import FiTv2
from fit_models.prepacked import lay_out_weights
from fit_models.text_encoder import (
    TEXT_ENCODER,
    TOKENIZER,
    TextEncoder,
    check_channels,
    load_text_encoder,
)

EMBEDDED = "embedded"
MODEL_INDEX = "model_index.json"
PROFILE = "scheduler/step_cache.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """What a request gets where it does not say.

    Attributes:
        num_inference_steps: steps of the schedule.
        guidance_scale: 1 is none.
        guidance_interval: (low, high) sigmas between which guidance acts.
        sampler: of those the network is sampled by, `fit_models.families.samplers_of`.
    """

    num_inference_steps: int = 25
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "euler"

    def __post_init__(self) -> None:
        if self.sampler not in ALL_SAMPLERS:
            raise ValueError(
                f"sampler {self.sampler!r} is unknown; known: {', '.join(ALL_SAMPLERS)}"
            )
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps}; it must be at least 1"
            )
        Guidance(self.guidance_scale, self.guidance_interval)  # refuses what it cannot mean


@dataclass(frozen=True)
class Bundle:
    """A network ready to run, its autoencoder, and what its labels mean or what reads prompts.

    Attributes:
        name: as clients see it.
        network: on its device.
        autoencoder: of its latents.
        class_names: in label order; empty for a network that reads captions.
        defaults: what a request gets where it does not say.
        profile: how the prediction behaves.
        text_encoder: for a network that reads captions, and for no other.
    """

    name: str
    network: Network
    autoencoder: Autoencoder
    class_names: tuple[str, ...]
    defaults: SamplingDefaults
    profile: PredictionProfile = GENERIC_PROFILE
    text_encoder: TextEncoder | None = None

    @property
    def model_config(self) -> NetworkConfig:
        """Of the network."""
        return self.network.config

    def fitv2(self, purpose: str) -> FiTv2:
        """The network, for what only FiTv2 is for.

        Args:
            purpose: in the plural, for the error: "adapters".

        Raises:
            ValueError: the network is of another family.
        """
        if not isinstance(self.model_config, ModelConfig):
            family = family_of(self.model_config).name
            raise ValueError(f"model {self.name!r} is a {family}; {purpose} are for FiTv2")
        return cast(FiTv2, self.network)

    def class_network(self, purpose: str) -> ClassNetwork:
        """The network, for what only those are for that are told a class.

        Args:
            purpose: in the plural, for the error: "offline samplers".

        Raises:
            ValueError: the network reads captions.
        """
        if isinstance(self.network, TextNetwork):
            family = family_of(self.model_config).name
            raise ValueError(
                f"model {self.name!r} is a {family}, which reads prompts; {purpose} are for models "
                "that draw classes"
            )
        return self.network

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return placement(self.network)[0]

    @property
    def dtype(self) -> torch.dtype:
        """What the network's weights are."""
        return placement(self.network)[1]

    @property
    def pixels_per_token(self) -> int:
        """Side of a token in pixels: patch size times the autoencoder's downsampling."""
        return self.model_config.patch_size * self.autoencoder.downsampling


def bundle_folder(name_or_path: str) -> Path:
    """The folder of a bundle: the embedded one by name, any other by path.

    Raises:
        ValueError: there is no bundle.
    """
    if name_or_path == EMBEDDED:
        folder = Path(str(resources.files("fit_models") / "embedded"))
    else:
        folder = Path(name_or_path).expanduser()
    if not (folder / MODEL_INDEX).is_file():
        raise ValueError(
            f"model {name_or_path!r}: {folder} is not a bundle ({MODEL_INDEX} is missing)"
        )
    return folder


def load_bundle(
    name_or_path: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = torch.float32,
    adapters: Sequence[str | Path] = (),
    lay_out: bool = True,
) -> Bundle:
    """Load network and autoencoder; device and dtype may be "auto", see `fit_models.device`.

    Args:
        name_or_path: as for `bundle_folder`.
        device, dtype: where the weights go, and as what.
        adapters: by their folders, merged into the network's weights. The bundle's name then ends
            in theirs ("base+dogs"), and the classes they bring follow the bundle's own.
        lay_out: bring the weights into the order that is served from. Without it those on a CPU,
            in the dtype they are stored in, stay memory-mapped: enough to see that all is there.

    Raises:
        ValueError: a file is missing, unreadable or does not fit, or an adapter was made for other
            weights or brings a class that is there; the message names it.
    """
    folder = bundle_folder(name_or_path)
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    index = _read_json(folder / MODEL_INDEX)
    config = read_network_config(folder)
    network = empty_network(config)
    load_weights(network, folder / "transformer", device, dtype)
    loaded = [load_adapter(path) for path in adapters]
    class_names = _class_names(index, config)
    if loaded:
        if not isinstance(network, FiTv2):
            raise ValueError(f"model {name_or_path!r} is no FiTv2, which adapters are for")
        class_names = merge_adapters(network, loaded, class_names)
    network.eval().requires_grad_(False)
    if lay_out:
        lay_out_weights(network)
    autoencoder = Autoencoder.from_folder(folder / "vae").to(device, dtype)
    if autoencoder.latent_channels != config.in_channels:
        raise ValueError(
            f"vae has {autoencoder.latent_channels} latent channels, "
            f"transformer/config.json says {config.in_channels}"
        )
    defaults = _defaults(folder / "scheduler" / "scheduler_config.json")
    if defaults.sampler not in (known := samplers_of(config)):
        raise ValueError(
            f"scheduler_config.json: sampler is {defaults.sampler!r}; "
            f"this network is sampled by {', '.join(known)}"
        )
    return Bundle(
        name="+".join((str(index.get("name", folder.name)), *(one.name for one in loaded))),
        network=network,
        autoencoder=autoencoder,
        class_names=class_names,
        defaults=defaults,
        profile=_profile(folder / PROFILE),
        text_encoder=_text_encoder(folder, index, config, device, dtype),
    )


def read_network_config(folder: Path) -> NetworkConfig:
    """What the network of a bundle is made of.

    Raises:
        ValueError: `transformer/config.json` is missing or is not that of a network we know.
    """
    values = _read_json(folder / "transformer" / "config.json")
    return family_named(values.get("_class_name")).config.from_dict(values)


def save_bundle(
    folder: Path,
    name: str,
    config: NetworkConfig,
    weights: Mapping[str, Tensor],
    class_names: Sequence[str],
    defaults: SamplingDefaults,
    dtype: torch.dtype | None = torch.bfloat16,
    max_shard_bytes: int = 15 * 2**20,
) -> None:
    """Write everything but `vae/`, `text_encoder/` and `tokenizer/`, which are copied.

    A dtype of None keeps that of each tensor.
    """
    network_class = family_of(config).name
    save_weights(weights, folder / "transformer", dtype, max_shard_bytes)
    _write_json(
        folder / "transformer" / "config.json", {"_class_name": network_class, **config.to_dict()}
    )
    _write_json(
        folder / "scheduler" / "scheduler_config.json", {"_class_name": "Flow", **asdict(defaults)}
    )
    _write_json(
        folder / MODEL_INDEX,
        {
            "_class_name": "FitBundle",
            "name": name,
            "transformer": ["fit_models", network_class],
            "vae": ["diffusers", _autoencoder_class(folder / "vae" / "config.json")],
            "scheduler": ["fit_models", "Flow"],
            **_text_components(config),
            "id2label": {str(label): text for label, text in enumerate(class_names)},
        },
    )


def _text_components(config: NetworkConfig) -> dict[str, list[str]]:
    if caption_reading(config) is None:
        return {}
    return {
        TEXT_ENCODER: ["transformers", "AutoModel"],
        TOKENIZER: ["transformers", "AutoTokenizer"],
    }


def _autoencoder_class(config: Path) -> str:
    """The class a copied autoencoder names; the small one where none is there yet."""
    return str(_read_json(config).get("_class_name")) if config.is_file() else "AutoencoderTiny"


def _class_names(index: Mapping[str, Any], config: NetworkConfig) -> tuple[str, ...]:
    labels = index.get("id2label")
    if not isinstance(labels, dict) or sorted(labels, key=str) != sorted(
        (str(i) for i in range(config.num_classes)), key=str
    ):
        raise ValueError(
            f"{MODEL_INDEX}: id2label must name labels 0..{config.num_classes - 1}, each once"
        )
    return tuple(str(labels[str(i)]) for i in range(config.num_classes))


def _text_encoder(
    folder: Path,
    index: Mapping[str, Any],
    config: NetworkConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> TextEncoder | None:
    reading = caption_reading(config)
    if reading is None:
        return None
    assert isinstance(config, TextConfig)
    prefix = str(index.get("prompt_prefix", ""))
    encoder = load_text_encoder(folder, reading, device, dtype, prefix)
    check_channels(encoder.channels, config.caption_channels)
    return encoder


def _defaults(path: Path) -> SamplingDefaults:
    values = {k: v for k, v in _read_json(path).items() if not k.startswith("_")}
    if isinstance(values.get("guidance_interval"), list):
        values["guidance_interval"] = tuple(values["guidance_interval"])
    try:
        return SamplingDefaults(**values)
    except TypeError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _profile(path: Path) -> PredictionProfile:
    return PredictionProfile.from_dict(_read_json(path)) if path.is_file() else GENERIC_PROFILE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"bundle: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"bundle: {path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"bundle: {path} holds a {type(values).__name__}, not an object")
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
