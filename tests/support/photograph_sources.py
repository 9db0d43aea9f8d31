"""The same photographs in every container that `open_photographs` reads."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image

from support.photograph_archives import invented_photograph

Files = Mapping[str, bytes]  # by path CLASS/name.ext, in the order of the paths

FILES_SIZES = {
    "ant/a.png": (48, 64),
    "ant/b.png": (64, 48),
    "bee/c.png": (64, 64),
    "watch/d.png": (96, 48),
    "watch/e.png": (50, 70),
}


def encoded(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """Return an image's file."""
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def invented_files(sizes: Mapping[str, tuple[int, int]] = FILES_SIZES) -> dict[str, bytes]:
    """Return invented photographs of the given (width, height), no two alike."""
    numbered = enumerate(sizes.items())
    return {path: encoded(invented_photograph(*size, number)) for number, (path, size) in numbered}


def write_folder(where: Path, files: Files) -> Path:
    for path, data in files.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(data)
    return where


def write_zip(where: Path, files: Files) -> Path:
    with zipfile.ZipFile(where.with_suffix(".zip"), "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return where.with_suffix(".zip")


def write_manifest_zip(where: Path, files: Files) -> Path:
    manifest = io.StringIO()
    writer = csv.writer(manifest)
    writer.writerow(("path", "class", "width", "height"))
    for path, data in files.items():
        width, height = Image.open(io.BytesIO(data)).size
        writer.writerow((path, path.split("/")[0], width, height))
    return write_zip(where, {**files, "manifest.csv": manifest.getvalue().encode()})


def write_tar(where: Path, files: Files) -> Path:
    where = where.with_suffix(".tar")
    with tarfile.open(where, "w") as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return where


def write_shards(where: Path, files: Files) -> Path:
    where.mkdir()
    paths = list(files)
    for number, start in enumerate(range(0, len(paths), 2)):
        part = {path: files[path] for path in paths[start : start + 2]}
        write_tar(where / f"part-{number:04d}.tar", part)
    return where


def write_parquet(where: Path, files: Files, with_names: bool = True) -> Path:
    """Write a struct column and labels: numbers named in the metadata, or names."""
    import pyarrow
    from pyarrow import parquet

    names = sorted({path.split("/")[0] for path in files})
    images = [{"bytes": data, "path": path} for path, data in files.items()]
    labels = [path.split("/")[0] for path in files]
    table = pyarrow.table({"image": images, "label": labels})
    if with_names:
        table = pyarrow.table({"image": images, "label": [names.index(each) for each in labels]})
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    where = where.with_suffix(".parquet")
    parquet.write_table(table, where, row_group_size=2)
    return where


def write_parquet_folder(where: Path, files: Files) -> Path:
    (where / "data").mkdir(parents=True)
    paths = list(files)
    halves = {path: files[path] for path in paths[:2]}, {path: files[path] for path in paths[2:]}
    for number, half in enumerate(halves):
        write_parquet(where / "data" / f"train-{number}", half, with_names=False)
    return where


WRITERS: dict[str, Callable[[Path, Files], Path]] = {
    "folder": write_folder,
    "zip": write_zip,
    "manifest": write_manifest_zip,
    "tar": write_tar,
    "shards": write_shards,
    "parquet": write_parquet,
    "parquet_folder": write_parquet_folder,
}
