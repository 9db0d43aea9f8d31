"""Latents that a transformer makes beside what the teacher decodes them to: no photograph.

A decoder that is served decodes such latents and no others. They are sampled as served: guided, in
the bundle's steps and with its sampler, every class and many aspects.

Knows sampling and the files of such pairs. Knows nothing of photographs and of the student.

Dimension key: B pictures of one size, T tokens of all of them, K token channels, H and W sides in
pixels, h = H / 8 and w = W / 8 in latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_models.bundle import Bundle, load_bundle
from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.sampler import make_trajectory
from fit_models.patches import unpatchify
from fit_training.autoencoder.image_pairs import INDEX_NAME, claim_folder, write_index
from fit_training.post_training.guided_teacher import GuidedTeacher

SIZES = ((8, 8), (6, 8), (8, 6), (6, 11), (11, 6), (7, 10), (10, 7), (9, 9), (8, 10), (10, 8))
"""(rows, columns) in tokens; of 16 pixels, these are pictures from 96 x 128 to 144 x 144."""


@dataclass(frozen=True)
class GeneratedConfig:
    """Whose latents, whose decoder, how many pictures, and the folder they are written to.

    `model` is a bundle's folder or "embedded", `teacher` a folder for `Autoencoder`. `sizes` are
    (rows, columns) in tokens and take turns, shard by shard of at most `shard_pictures`.
    """

    model: str
    teacher: Path
    folder: Path
    count: int
    sizes: tuple[tuple[int, int], ...] = SIZES
    shard_pictures: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number below 1."""
        for name, value in (("generated", self.count), ("shard_pictures", self.shard_pictures)):
            if value < 1:
                raise ValueError(f"{name}: {value} is less than 1")
        for size in self.sizes:
            if min(size) < 1:
                raise ValueError(f"sizes: {size} has a side of less than 1 token")


def write_generated_pairs(
    config: GeneratedConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write `config.folder` as `write_image_pairs` does, but with no photographs in it.

    Finished shards are kept. Raises `ValueError` if the folder was begun with another config, or
    if the teacher's latents have not the shape of the model's.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    claim_folder(config.folder, _described(config))
    if (config.folder / INDEX_NAME).exists():
        return
    bundle = load_bundle(config.model)
    teacher = Autoencoder.from_folder(config.teacher).to(dtype=torch.bfloat16)
    for name in ("latent_channels", "downsampling"):
        ours, theirs = getattr(teacher, name), getattr(bundle.autoencoder, name)
        if ours != theirs:
            raise ValueError(f"teacher: its {name} is {ours}, that of {config.model} is {theirs}")
    written: list[str] = []
    for number, start in enumerate(range(0, config.count, config.shard_pictures)):
        rows, columns = config.sizes[number % len(config.sizes)]
        name = f"generated-{number:04d}.safetensors"
        path = config.folder / name
        if not path.exists():
            seeds = range(start, min(start + config.shard_pictures, config.count))
            latents_B4hw = sample_latents(bundle, rows, columns, seeds, config.seed)
            partial = path.with_suffix(".partial")
            save_file(decoded_pairs(latents_B4hw, bundle.autoencoder, teacher), partial)
            partial.replace(path)
        written.append(name)
        on_progress(min(start + config.shard_pictures, config.count), config.count)
    write_index(config.folder, written)


def sample_latents(bundle: Bundle, rows: int, columns: int, numbers: range, seed: int) -> Tensor:
    """Latents of the bundle's own space [B, C, h, w], float32: a picture for each of `numbers`.

    Picture i is of class i modulo their number. What noise it gets depends on `seed` and i alone.
    """
    network, defaults = bundle.fitv2("generated pairs"), bundle.defaults
    config, device = network.config, bundle.device
    labels_B = torch.tensor([number % len(bundle.class_names) for number in numbers])
    guidance = Guidance(defaults.guidance_scale, defaults.guidance_interval)
    field = GuidedTeacher(network, [(rows, columns)] * len(numbers), labels_B, guidance)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in numbers]

    def noise() -> Tensor:
        shape = (rows * columns, config.token_channels)
        drawn = [torch.randn(shape, generator=each) for each in generators]
        return torch.cat(drawn).to(device)

    trajectory = make_trajectory(defaults.sampler, defaults.num_inference_steps)
    x_TK = noise()
    if trajectory.start_noise:
        x_TK = x_TK + trajectory.start_noise * noise()
    memory_TK = torch.zeros_like(x_TK)
    for evaluation in trajectory.evaluations:
        sigma_B = torch.full((len(numbers),), evaluation.sigma, dtype=torch.float64)
        velocity_TK = field(x_TK, sigma_B)
        of_x, of_v, of_m, of_noise, to_x, to_v, to_m = evaluation.coefficients
        moved_TK = of_x * x_TK + of_v * velocity_TK + of_m * memory_TK
        memory_TK = to_x * x_TK + to_v * velocity_TK + to_m * memory_TK
        x_TK = moved_TK + of_noise * noise() if evaluation.needs_noise else moved_TK
    tokens_BNK = x_TK.view(len(numbers), rows * columns, -1)
    return unpatchify(tokens_BNK, rows, columns, config.patch_size).cpu()


def decoded_pairs(
    latents_B4hw: Tensor, served: Autoencoder, teacher: Autoencoder
) -> dict[str, Tensor]:
    """`latents` as the teacher speaks them (float16), and `decoded` (uint8 [B, 3, H, W]) of these.

    The latents given are normalised as the served autoencoder says: raw / scale + shift undoes it.
    """
    raw_B4hw = latents_B4hw / served.scaling_factor + served.shift_factor
    spoken_B4hw = ((raw_B4hw - teacher.shift_factor) * teacher.scaling_factor).half()
    decoded = [teacher.decode(each_4hw[None]) for each_4hw in spoken_B4hw]
    return {"latents": spoken_B4hw.contiguous(), "decoded": torch.cat(decoded)}


def _described(config: GeneratedConfig) -> Mapping[str, object]:
    """What tells two folders of pairs apart."""
    return {
        "model": Path(config.model).name,
        "teacher": config.teacher.name,
        "count": config.count,
        "sizes": [list(size) for size in config.sizes],
        "shard_pictures": config.shard_pictures,
        "seed": config.seed,
    }
