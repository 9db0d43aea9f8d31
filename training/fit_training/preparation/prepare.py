"""Photographs -> token-packed latents with alignment features, once, before training.

Knows the order of the work, how to resume it and what is told of broken photographs. Leaves the
work itself to latent_preparation.py.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fit_training.preparation.latent_preparation import LatentPreparation
from fit_training.preparation.latent_shards import LatentFolder
from fit_training.preparation.photographs import SkippedPhotograph, none_usable
from fit_training.preparation.prepare_config import PrepareConfig
from fit_training.preparation.sources.opening import open_photographs

SKIPPED = "skipped.jsonl"
CLASSES = "classes.txt"  # in label order, for the --classes of export
Progress = Callable[[int, int], None]  # number of images finished, and of all


@dataclass(frozen=True)
class Preparation:
    """What came of a run: photographs used, images made of them, classes, and what was left out."""

    num_photographs: int
    num_images: int
    num_classes: int
    skipped: tuple[SkippedPhotograph, ...]


def prepare_latents(config: PrepareConfig, progress: Progress | None = None) -> Preparation:
    """Write every shard that is not there yet: variant 0 of all photos first, then variant 1, ...

    Safe to stop and to start again: the index names finished shards only, and one whose bytes have
    changed is made again. Broken photographs are left out and listed in skipped.jsonl. Raises
    `ValueError` for unusable inputs, when the destination was begun with other options, and when
    every photograph is broken.
    """
    config.destination.mkdir(parents=True, exist_ok=True)
    with (
        open_photographs(config.photographs, config.class_names) as source,
        _threads_shared_among(config.num_workers),
    ):
        work = LatentPreparation(config, source)
        work.settle_basis()
        description = work.description()
        folder = LatentFolder(config.destination, description)
        _write_lines(config.destination / CLASSES, [row["text"] for row in description["classes"]])
        work.broken.update(folder.skipped)
        skipped = [*source.skipped]
        _write_skipped(config.destination / SKIPPED, skipped)
        shards = list(work.shards())
        done, total = 0, sum(len(photos) for _, photos, _ in shards)
        for name, photos, variant in shards:
            if not folder.holds(name):
                images = work.images(photos, variant)
                broken = {photo: work.broken[photo] for photo in photos if photo in work.broken}
                folder.add(name, variant, images, broken)
            skipped = [*source.skipped, *work.described(folder.skipped)]
            _write_skipped(config.destination / SKIPPED, skipped)
            done += len(photos)
            if progress is not None:
                progress(done, total)
        if not folder.num_images:
            raise ValueError(none_usable(config.photographs, skipped))
        return Preparation(
            num_photographs=len(source.photographs) - len(folder.skipped),
            num_images=folder.num_images,
            num_classes=len(source.class_names),
            skipped=tuple(skipped),
        )


def _write_skipped(path: Path, skipped: Sequence[SkippedPhotograph]) -> None:
    """Write one JSON object a line, whole or not at all; no file for nothing."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    _write_lines(path, [json.dumps(asdict(each), ensure_ascii=False) for each in skipped])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, path)


@contextmanager
def _threads_shared_among(num_workers: int) -> Iterator[None]:
    """Divide torch's threads among the workers: one thread a batch beats all threads on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // num_workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
