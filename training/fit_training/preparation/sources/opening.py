"""Which reader a path needs, by what is there.

Knows how containers are told apart. Knows nothing of what is in them.
"""

import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fit_training.preparation.photographs import PhotographSource
from fit_training.preparation.sources.folder import PhotographFolder
from fit_training.preparation.sources.parquet import PhotographParquet
from fit_training.preparation.sources.webdataset import WebDataset
from fit_training.preparation.sources.zip_archive import PhotographZip

_PARQUET_MAGIC = b"PAR1"
_SPLITS = ("train", "validation", "val", "test")


def open_photographs(path: Path, class_names: Sequence[str] | None = None) -> PhotographSource:
    """Open labelled photographs for reading; use the result as a context manager.

    Args:
        path: a folder CLASS/name.ext; a zip with a manifest.csv or with CLASS/name.ext; a tar shard
            or a folder of them; a parquet file or a folder of them. A last part with * stands for
            the shards it matches.
        class_names: give the labels 0, 1, 2, ...; without them every class is taken.

    Raises:
        ValueError: nothing is there, it is none of these, or it lacks a class.
    """
    if path.is_dir():
        return _opened_folder(path, class_names)
    if path.is_file():
        return _opened_files(path, [path], class_names)
    if "*" in path.name and (matches := sorted(path.parent.glob(path.name))):
        return _opened_files(path, matches, class_names)
    raise ValueError(f"photographs: no such folder or archive: {path}")


def _opened_folder(path: Path, class_names: Sequence[str] | None) -> PhotographSource:
    if shards := sorted(path.glob("*.tar")):
        return WebDataset(path, shards, class_names)
    if files := sorted(path.rglob("*.parquet")):
        splits = {name for file in files for name in _SPLITS if file.name.startswith(f"{name}-")}
        if len(splits) > 1:
            raise ValueError(
                f"photographs: {path} holds the splits {sorted(splits)}; name one, "
                f"as in {files[0].parent / sorted(splits)[0]}-*.parquet"
            )
        return PhotographParquet(path, files, class_names)
    return PhotographFolder(path, class_names)


def _opened_files(
    path: Path, files: Sequence[Path], class_names: Sequence[str] | None
) -> PhotographSource:
    first = files[0]
    with first.open("rb") as file:
        magic = file.read(len(_PARQUET_MAGIC))
    if magic == _PARQUET_MAGIC:
        return PhotographParquet(path, files, class_names)
    if zipfile.is_zipfile(first) and len(files) == 1:
        return PhotographZip(first, class_names)
    if tarfile.is_tarfile(first):
        return WebDataset(path, files, class_names)
    raise ValueError(f"photographs: {first} is neither a zip, nor a tar, nor a parquet file")
