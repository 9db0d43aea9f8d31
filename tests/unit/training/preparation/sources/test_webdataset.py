from pathlib import Path

import pytest

from fit_training.preparation.sources.opening import open_photographs
from support.photograph_archives import invented_photograph
from support.photograph_sources import encoded, write_tar

IMAGE = encoded(invented_photograph(32, 32, 1))


def classes_of(path: Path) -> dict[str, str]:
    with open_photographs(path) as source:
        names = source.class_names
        return {photo.path: names[photo.label] for photo in source.photographs}


def test_a_sample_has_the_class_of_its_cls_then_json_then_folder(tmp_path: Path):
    members = {
        "0000.png": IMAGE,
        "0000.cls": b"7\n",
        "0001.json": b'{"label": "ant", "cls": 3}',
        "0001.png": IMAGE,
        "0002.cls": b"bee",
        "0002.json": b'{"class": "not this"}',
        "0002.png": IMAGE,
        "cow/0003.png": IMAGE,
        "cow/0003.json": b'{"caption": "a cow"}',
    }
    assert classes_of(write_tar(tmp_path / "shard", members)) == {
        "0000.png": "7",
        "0001.png": "ant",
        "0002.png": "bee",
        "cow/0003.png": "cow",
    }


def test_the_name_of_a_sample_ends_at_the_first_dot(tmp_path: Path):
    members = {"a.b/0.left.png": IMAGE, "a.b/0.right.png": IMAGE, "a.b/0.cls": b"ant"}
    classes = classes_of(write_tar(tmp_path / "shard", members))
    assert classes == {"a.b/0.left.png": "ant", "a.b/0.right.png": "ant"}


def test_a_sample_without_a_class_is_skipped(tmp_path: Path):
    members = {"0.png": IMAGE, "1.png": IMAGE, "1.cls": b"1"}
    with open_photographs(write_tar(tmp_path / "shard", members)) as source:
        assert [photo.path for photo in source.photographs] == ["1.png"]
        assert [each.path for each in source.skipped] == ["0.png"]


def test_a_shard_that_ends_early_is_refused(tmp_path: Path):
    shard = write_tar(tmp_path / "shard", {"ant/0.png": IMAGE, "ant/1.png": IMAGE})
    shard.write_bytes(shard.read_bytes()[:1300])
    with pytest.raises(ValueError, match="is no uncompressed tar"):
        open_photographs(shard)
