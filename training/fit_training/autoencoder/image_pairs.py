"""Photographs beside what a teacher autoencoder makes of them: the data of its distillation.

Every photograph is resized a little, mirrored or not, and cut into *tiles* of a few sizes. Each
tile goes through the teacher on its own, so that image, latents and decoded image agree up to their
borders and no loss has to be masked. Mirroring comes before the teacher: a convolutional
autoencoder does not commute with it.

Knows how tiles are cut, the teacher and the files. Knows nothing of how batches are drawn and of
the student.

Dimension key: B tiles, H and W their sides in pixels, h = H / 8 and w = W / 8 in latents.
"""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_training.preparation.decoding import BrokenPhotographError
from fit_training.preparation.sources.opening import open_photographs

INDEX_NAME = "index.json"
TEACHER_BATCH_PIXELS = 1 << 17
COVERED_SHARE = 0.75  # tiles are cut until their area is this share of the photograph's


@dataclass(frozen=True)
class PairConfig:
    """Where the photographs and the teacher are, and how tiles are cut.

    `archive` is what `open_photographs` takes, `teacher` a folder for `Autoencoder`, `folder` what
    is written. `sides` are the lengths in pixels a tile may have in either direction (multiples of
    8), `scales` the range of the random resize, `shard_tiles` the most tiles in a file.
    """

    archive: Path
    teacher: Path
    folder: Path
    sides: tuple[int, ...] = (64, 96, 128)
    scales: tuple[float, float] = (0.75, 1.1)
    shard_tiles: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `ValueError` for sides, scales and shard sizes that cannot be."""
        if not self.sides:
            raise ValueError("sides: at least one is needed")
        for side in self.sides:
            if side <= 0 or side % 8:
                raise ValueError(f"sides: {side} is not a positive multiple of 8")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales: {self.scales} is not a rising range above 0")
        if self.shard_tiles < 1:
            raise ValueError(f"shard_tiles: {self.shard_tiles} is less than 1")


@dataclass(frozen=True)
class ImagePairs:
    """Tiles of one size: `images_B3HW` and `decoded_B3HW` uint8, `latents_B4hw` float16.

    Latents that a transformer made have no photograph: their `images_B3HW` are None. In a batch
    (`pair_batches`) all are float32 and the pixels in [-1, 1].
    """

    images_B3HW: Tensor | None
    latents_B4hw: Tensor
    decoded_B3HW: Tensor

    @property
    def num_pixels(self) -> int:
        """Area of all tiles together."""
        return self.decoded_B3HW[:, 0].numel()


def cut_tiles(photograph: Image.Image, config: PairConfig, seed: str) -> list[Image.Image]:
    """Resize, perhaps mirror, and cut one photograph into tiles that cover most of its area.

    The same seed gives the same tiles. A photograph too small for the smallest tile is enlarged.
    """
    generator = random.Random(seed)
    smallest = min(config.sides)
    scale = math.exp(generator.uniform(*(math.log(scale) for scale in config.scales)))
    scale = max(scale, smallest / min(photograph.size))
    width, height = (max(smallest, round(side * scale)) for side in photograph.size)
    photograph = photograph.resize((width, height), Image.Resampling.BICUBIC)
    if generator.random() < 0.5:
        photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tiles, covered = [], 0
    while covered < COVERED_SHARE * width * height:
        tile_width = generator.choice([side for side in config.sides if side <= width])
        tile_height = generator.choice([side for side in config.sides if side <= height])
        left = generator.randint(0, width - tile_width)
        top = generator.randint(0, height - tile_height)
        tiles.append(photograph.crop((left, top, left + tile_width, top + tile_height)))
        covered += tile_width * tile_height
    return tiles


def write_image_pairs(
    config: PairConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write `config.folder`: shards of pairs and, last of all, the index that completes them.

    `on_progress` gets the number of shards done and their total. Finished shards are kept and a
    finished folder is left alone, so that an interrupted run goes on where it stopped. All tiles
    are held in memory meanwhile (about 400 MB for 6,000 photographs of 192 pixels).

    Raises `ValueError` if the folder was written or begun with another config.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    described = asdict(config) | {"archive": config.archive.name, "teacher": config.teacher.name}
    del described["folder"]
    claim_folder(config.folder, described)
    if (config.folder / INDEX_NAME).exists():
        return
    shards = _plan_shards(config)
    teacher = Autoencoder.from_folder(config.teacher).to(dtype=torch.bfloat16)
    for done, (name, tiles_B3HW) in enumerate(shards.items(), start=1):
        if not (config.folder / name).exists():
            _write_shard(config.folder / name, tiles_B3HW, teacher)
        on_progress(done, len(shards))
    write_index(config.folder, list(shards))


def load_image_pairs(folder: Path) -> list[ImagePairs]:
    """Read every shard of a folder into memory, one entry a tile size.

    Raises `ValueError` if the folder has no index, that is, if it was never completed.
    """
    index = folder / INDEX_NAME
    if not index.exists():
        raise ValueError(f"pairs: {folder} holds no {INDEX_NAME}; it is not complete")
    by_size: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}
    for name in json.loads(index.read_text())["shards"]:
        tensors = load_file(folder / name)
        by_size.setdefault(tuple(tensors["decoded"].shape[2:]), []).append(tensors)

    def joined(shards: list[dict[str, Tensor]], key: str) -> Tensor:
        return torch.cat([each[key] for each in shards])

    return [
        ImagePairs(
            joined(shards, "images") if "images" in shards[0] else None,
            joined(shards, "latents"),
            joined(shards, "decoded"),
        )
        for _, shards in sorted(by_size.items())
    ]


def to_tensor(image: Image.Image) -> Tensor:
    """Copy an RGB image into a uint8 tensor [3, height, width]."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def claim_folder(folder: Path, described: Mapping[str, object]) -> None:
    """Write what a folder of pairs is made from, or check that it is the same as before.

    Raises `ValueError` if it is not.
    """
    path = folder / "config.json"
    text = json.dumps(described, indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise ValueError(f"pairs: {folder} was written with another config; see {path}")
    path.write_text(text)


def write_index(folder: Path, shards: Sequence[str]) -> None:
    """Complete a folder of pairs: name its shards, in one move."""
    partial = folder / f"{INDEX_NAME}.partial"
    partial.write_text(json.dumps({"shards": list(shards)}, indent=1) + "\n")
    partial.replace(folder / INDEX_NAME)


def _plan_shards(config: PairConfig) -> dict[str, Tensor]:
    """Cut everything and group it by size: the tiles of every shard, by file name."""
    by_size: dict[tuple[int, int], list[Tensor]] = {}
    with open_photographs(config.archive) as archive:
        for number, photograph in enumerate(archive.photographs):
            try:
                image = archive.open(photograph)
            except BrokenPhotographError:
                continue
            for tile in cut_tiles(image, config, seed=f"{config.seed}/{number}"):
                by_size.setdefault((tile.height, tile.width), []).append(to_tensor(tile))
    shards = {}
    for (height, width), tiles in sorted(by_size.items()):
        for number, start in enumerate(range(0, len(tiles), config.shard_tiles)):
            name = f"pairs-{height}x{width}-{number:03d}.safetensors"
            shards[name] = torch.stack(tiles[start : start + config.shard_tiles])
    return shards


def _write_shard(path: Path, tiles_B3HW: Tensor, teacher: Autoencoder) -> None:
    """Run the teacher over the tiles of one shard and write the file in one move."""
    count = max(1, TEACHER_BATCH_PIXELS // tiles_B3HW[0, 0].numel())
    latents, decoded = [], []
    for images_B3HW in tiles_B3HW.split(count):
        latents.append(teacher.encode(images_B3HW).half())
        decoded.append(teacher.decode(latents[-1]))  # of what is stored, to the last bit
    tensors = {"images": tiles_B3HW, "latents": torch.cat(latents), "decoded": torch.cat(decoded)}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)
