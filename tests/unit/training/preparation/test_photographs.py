from pathlib import Path

import pytest

from fit_training.preparation.sources.opening import open_photographs
from support.photograph_archives import invented_photograph, write_archive
from support.shared_data import shared_data

PHOTOGRAPHS = [("watch", 40, 30), ("ant", 24, 50), ("watch", 33, 33), ("lotus", 64, 20)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "photographs.zip", PHOTOGRAPHS)


def test_every_class_is_taken_in_alphabetical_order(path: Path):
    with open_photographs(path) as archive:
        assert archive.class_names == ("ant", "lotus", "watch")
        assert [photograph.label for photograph in archive.photographs] == [2, 0, 2, 1]


def test_chosen_classes_give_the_labels_and_leave_out_the_rest(path: Path):
    with open_photographs(path, ["watch", "ant"]) as archive:
        assert archive.class_names == ("watch", "ant")
        found = [(photograph.label, photograph.width) for photograph in archive.photographs]
        assert found == [(0, 40), (1, 24), (0, 33)]


def test_a_photo_opens_as_the_pixels_that_were_put_in(path: Path):
    with open_photographs(path) as archive:
        for number, photograph in enumerate(archive.photographs):
            image = archive.open(photograph)
            assert image.mode == "RGB"
            assert image.size == (photograph.width, photograph.height)
            assert image.tobytes() == invented_photograph(*image.size, number).tobytes()


@pytest.mark.parametrize(
    ("class_names", "message"),
    [(["watch", "bee"], r"\['bee'\] not among the 3 classes"), (["ant", "ant"], "named twice")],
)
def test_a_wrong_choice_of_classes_is_refused(path: Path, class_names: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        open_photographs(path, class_names)


def test_an_archive_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder or archive"):
        open_photographs(tmp_path / "absent.zip")
    text = tmp_path / "text.zip"
    text.write_text("not a zip")
    with pytest.raises(ValueError, match="neither a zip, nor a tar, nor a parquet file"):
        open_photographs(text)


def test_a_manifest_must_have_its_columns(tmp_path: Path):
    narrow = write_archive(tmp_path / "narrow.zip", PHOTOGRAPHS, columns=("path", "class", "width"))
    with pytest.raises(ValueError, match=r"lacks the columns \['height'\]"):
        open_photographs(narrow)


def test_the_shared_photographs_are_as_their_manifest_says():
    path = shared_data() / "caltech101" / "caltech101_192_val.zip"
    with open_photographs(path, ["yin_yang", "Leopards"]) as archive:
        assert {photograph.label for photograph in archive.photographs} == {0, 1}
        for photograph in archive.photographs:
            assert archive.open(photograph).size == (photograph.width, photograph.height)
