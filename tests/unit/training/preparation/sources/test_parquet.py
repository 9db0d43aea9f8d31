import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fit_training.preparation.sources.opening import open_photographs
from support.photograph_archives import invented_photograph
from support.photograph_sources import encoded

IMAGE = encoded(invented_photograph(32, 32, 1))


def write(path: Path, columns: dict[str, list[object]], names: list[str] | None = None) -> Path:
    table = pyarrow.table(columns)
    if names is not None:
        features = {"cls": {"names": names, "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    parquet.write_table(table, path)
    return path


def test_images_may_be_bytes_alone_and_are_named_by_their_rows(tmp_path: Path):
    path = write(tmp_path / "t.parquet", {"image": [IMAGE] * 3, "cls": [10, 9, 10]})
    with open_photographs(path) as source:
        assert source.class_names == ("9", "10")
        assert [photo.label for photo in source.photographs] == [1, 0, 1]
        assert [photo.path for photo in source.photographs] == [
            "t/000000",
            "t/000001",
            "t/000002",
        ]


def test_all_names_of_the_metadata_are_classes_in_their_order(tmp_path: Path):
    columns: dict[str, list[object]] = {"image": [IMAGE] * 2, "cls": [2, 0]}
    path = write(tmp_path / "t.parquet", columns, ["cow", "ant", "bee"])
    with open_photographs(path) as source:
        assert source.class_names == ("cow", "ant", "bee")  # as in every split of the set
        assert [photo.label for photo in source.photographs] == [2, 0]
    with open_photographs(path, ["bee"]) as source:
        assert [photo.path for photo in source.photographs] == ["t/000000"]


def test_rows_without_a_label_or_bytes_are_skipped(tmp_path: Path):
    images: list[object] = [{"bytes": IMAGE, "path": None}, {"bytes": None, "path": "far.png"}]
    columns: dict[str, list[object]] = {"image": [*images, images[0]], "cls": [0, 0, -1]}
    with open_photographs(write(tmp_path / "t.parquet", columns, ["ant"])) as source:
        assert [photo.path for photo in source.photographs] == ["t/000000"]
        reasons = {each.path: each.reason for each in source.skipped}
        assert reasons["t/000002"] == "nothing says its class"
        assert "empty" in reasons["far.png"]


def test_a_file_without_the_columns_is_refused(tmp_path: Path):
    path = write(tmp_path / "t.parquet", {"image": [IMAGE], "text": ["ant"]})
    with pytest.raises(ValueError, match=r"columns \['image', 'text'\], not image and one of"):
        open_photographs(path)


def test_a_damaged_file_is_refused(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(ValueError, match="is no parquet file"):
        open_photographs(path)
