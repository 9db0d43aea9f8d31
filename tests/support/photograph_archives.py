"""Small archives of invented photographs, as `open_photographs` reads them."""

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = ("path", "label", "class", "width", "height")


def invented_photograph(width: int, height: int, seed: int) -> Image.Image:
    """Return a smooth random RGB picture: a few large blobs of colour, no two alike."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def write_archive(
    path: Path, photographs: Sequence[tuple[str, int, int]], columns: Sequence[str] = COLUMNS
) -> Path:
    """Write (class, width, height) photos, in this order, as lossless WebP with a manifest."""
    manifest = io.StringIO()
    writer = csv.DictWriter(manifest, columns, extrasaction="ignore")
    writer.writeheader()
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, width, height) in enumerate(photographs):
            member = f"{name}/image_{number:04d}.webp"
            encoded = io.BytesIO()
            invented_photograph(width, height, number).save(encoded, "WEBP", lossless=True)
            archive.writestr(member, encoded.getvalue())
            writer.writerow(
                {"path": member, "label": 0, "class": name, "width": width, "height": height}
            )
        archive.writestr("manifest.csv", manifest.getvalue())
    return path
