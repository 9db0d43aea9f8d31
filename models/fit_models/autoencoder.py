"""Latents to pixels and back, and the scaling factor, once.

Knows the two autoencoders of `diffusers` we serve, what range each wants and how a value becomes a
byte. Knows nothing of tokens, networks or noise levels: latents here are what the transformer sees,
already multiplied by the scaling factor.

Dimension key: B images, C latent channels, H and W in pixels, h and w in latents.
"""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CLASS_NAMES = ("AutoencoderKL", "AutoencoderTiny")


class Autoencoder:
    """A frozen autoencoder, loaded from a folder in diffusers' layout.

    Attributes:
        class_name: `AutoencoderKL` or `AutoencoderTiny`.
        latent_channels: channels of a latent.
        downsampling: pixels per latent in either direction.
        scaling_factor: what raw latents, less the shift, are multiplied by.
        shift_factor: what is taken from raw latents first; 0 in most.

    """

    def __init__(self, network: Any) -> None:
        """Wrap a diffusers autoencoder; `from_folder` is the usual way in.

        Raises `ValueError` if the network is neither of the classes we know.
        """
        self.class_name = _check_class(type(network).__name__, "the network given")
        config = network.config
        self.latent_channels: int = config.latent_channels
        self.downsampling: int = _downsampling(self.class_name, config)
        self.scaling_factor = float(config.scaling_factor)
        self.shift_factor = float(config.shift_factor or 0.0)  # null in Stable Diffusion's configs
        self._network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load the autoencoder in `folder` (`config.json` and safetensors), from local files only.

        The weights become float32, however they are stored; `to` makes them something else. Raises
        `ValueError` if the folder lacks a readable `config.json` or weights, names a class we do
        not know, or has weights of another network.
        """
        class_name = _read_class_name(folder)
        if not (folder / WEIGHTS_NAME).is_file():
            raise ValueError(f"autoencoder: {folder} holds no {WEIGHTS_NAME}")
        import diffusers

        try:
            # from_pretrained, for it knows the older names of the attention's tensors too
            network, report = getattr(diffusers, class_name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,  # the other way needs the package accelerate
                output_loading_info=True,
            )
        except (RuntimeError, OSError) as error:
            raise ValueError(f"autoencoder: cannot load {folder}: {error}") from error
        for problem in ("missing_keys", "unexpected_keys"):
            if names := sorted(report[problem]):
                first = ", ".join(names[:4])
                raise ValueError(f"autoencoder: {folder} has {len(names)} {problem}: {first}")
        return cls(network)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._network.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are, and what the network computes in unless asked otherwise."""
        return self._network.dtype

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move the weights, change their type, or both. Returns the same autoencoder."""
        # torch's own method: diffusers' warns of modules to keep in float32 where there are none
        torch.nn.Module.to(self._network, device=device or self.device, dtype=dtype or self.dtype)
        return self

    @torch.inference_mode()
    def decode(self, latents_BChw: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Latents [B, C, h, w] -> images, uint8 [B, 3, H, W], on the autoencoder's device.

        `dtype` is what the network computes in, by default the type of its weights; with float32
        weights it may be bfloat16 or float16. The network's value v in [-1, 1] becomes
        trunc(clamp(127.5 v + 128, 0, 255)) in float32, as in FiT's sampling script
        (arXiv:2410.13925): the nearest level, halves up.

        Raises `ValueError` unless the latents have four dimensions and the autoencoder's channels,
        and for a `dtype` the weights cannot be used in.
        """
        channels = self.latent_channels
        if latents_BChw.dim() != 4 or latents_BChw.shape[1] != channels:
            raise ValueError(
                f"latents: shape {list(latents_BChw.shape)} is not [B, {channels}, h, w]"
            )
        raw_BChw = latents_BChw.float() / self.scaling_factor + self.shift_factor
        with self._computing_in(dtype):
            pixels_B3HW = self._network.decode(self._prepare(raw_BChw)).sample
        levels_B3HW = pixels_B3HW.float().mul(127.5).add(128).clamp(0, 255)
        return levels_B3HW.to(torch.uint8).contiguous()

    @torch.inference_mode()
    def encode(self, images_B3HW: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Images, uint8 [B, 3, H, W] -> latents, float32 [B, C, h, w], on the autoencoder's device.

        A level u becomes u / 127.5 - 1. Of a distribution (`AutoencoderKL`) the mean is taken.

        Raises `ValueError` unless the images are uint8 with three channels and sides that are
        multiples of `downsampling`, and for a `dtype` the weights cannot be used in.
        """
        _check_images(images_B3HW, self.downsampling)
        pixels_B3HW = images_B3HW.float().div(127.5).sub(1)
        with self._computing_in(dtype):
            encoded = self._network.encode(self._prepare(pixels_B3HW))
        is_distribution = self.class_name == "AutoencoderKL"
        raw_BChw = encoded.latent_dist.mode() if is_distribution else encoded.latents
        return ((raw_BChw.float() - self.shift_factor) * self.scaling_factor).contiguous()

    def _prepare(self, values: Tensor) -> Tensor:
        """Bring the network's input to its device, its type and its convolutions' layout."""
        moved = values.to(device=self.device, dtype=self.dtype)
        return moved.contiguous(memory_format=torch.channels_last)

    def _computing_in(self, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
        """Autocast to a type narrower than the weights; nothing to do for the weights' own."""
        if dtype is None or dtype == self.dtype:
            return nullcontext()
        if self.dtype != torch.float32 or dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype: {dtype} is not possible with {self.dtype} weights; use to()")
        return torch.autocast(self.device.type, dtype=dtype)


def _read_class_name(folder: Path) -> str:
    """Return the `_class_name` in a folder's `config.json`, if it is one of ours."""
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"autoencoder: {folder} holds no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"autoencoder: {path} is not JSON: {error}") from error
    class_name = config.get("_class_name") if isinstance(config, dict) else None
    return _check_class(class_name, str(path))


def _check_class(class_name: Any, where: str) -> str:
    if class_name not in CLASS_NAMES:
        known = ", ".join(CLASS_NAMES)
        raise ValueError(f"_class_name: {class_name!r} of {where} is not one of {known}")
    return class_name


def _downsampling(class_name: str, config: Any) -> int:
    """Pixels per latent: every stage after the first halves the sides."""
    if class_name == "AutoencoderKL":
        return 2 ** (len(config.block_out_channels) - 1)
    return config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1)


def _check_images(images_B3HW: Tensor, multiple: int) -> None:
    """Raise `ValueError` unless the images are uint8, RGB, of sides that can be halved."""
    if images_B3HW.dtype != torch.uint8:
        raise ValueError(f"images: dtype {images_B3HW.dtype} is not torch.uint8")
    if images_B3HW.dim() != 4 or images_B3HW.shape[1] != 3:
        raise ValueError(f"images: shape {list(images_B3HW.shape)} is not [B, 3, height, width]")
    for field, side in zip(("height", "width"), images_B3HW.shape[2:], strict=True):
        if side == 0 or side % multiple:
            raise ValueError(f"{field}: {side} is not a positive multiple of {multiple}")
