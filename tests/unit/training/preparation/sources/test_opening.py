"""Laws of every reader: the same photographs, whatever they lie in."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from fit_training.preparation.decoding import BrokenPhotographError
from fit_training.preparation.sources.opening import open_photographs
from support.photograph_archives import invented_photograph
from support.photograph_sources import (
    FILES_SIZES,
    WRITERS,
    Files,
    encoded,
    invented_files,
    write_folder,
    write_parquet,
    write_tar,
)

LABELS = [0, 0, 1, 2, 2]
Writer = Callable[[Path, Files], Path]
every_source = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())


@every_source
def test_every_container_gives_the_same_photographs(tmp_path: Path, write: Writer):
    with open_photographs(write(tmp_path / "photos", invented_files())) as source:
        assert source.class_names == ("ant", "bee", "watch")
        assert source.skipped == ()
        assert [photo.path for photo in source.photographs] == list(FILES_SIZES)
        assert [photo.label for photo in source.photographs] == LABELS
        sizes = [(photo.width, photo.height) for photo in source.photographs]
        assert sizes == list(FILES_SIZES.values())
        for number, photo in enumerate(source.photographs):
            wanted = invented_photograph(photo.width, photo.height, number)
            assert source.open(photo).tobytes() == wanted.tobytes()


@every_source
def test_chosen_classes_give_labels_and_leave_out_the_rest(tmp_path: Path, write: Writer):
    path = write(tmp_path / "photos", invented_files())
    with open_photographs(path, ["watch", "ant"]) as source:
        assert source.class_names == ("watch", "ant")
        assert [photo.label for photo in source.photographs] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"\['cow'\] not among the 3 classes"):
        open_photographs(path, ["ant", "cow"])


@every_source
def test_threads_may_open_side_by_side(tmp_path: Path, write: Writer):
    with open_photographs(write(tmp_path / "photos", invented_files())) as source:
        alone = [source.open(photo).tobytes() for photo in source.photographs] * 20
        with ThreadPoolExecutor(8) as threads:
            images = threads.map(source.open, source.photographs * 20)
            assert [image.tobytes() for image in images] == alone


@every_source
def test_the_fingerprint_changes_with_the_photographs(tmp_path: Path, write: Writer):
    files = invented_files()
    other = files | {"bee/c.png": encoded(invented_photograph(64, 70, 5))}
    prints = []
    for number, these in enumerate((files, other)):
        path = write(tmp_path / f"photos-{number}", these)
        for _ in range(2):
            with open_photographs(path) as source:
                prints.append(source.fingerprint())
    assert prints[0] == prints[1]
    assert prints[2] == prints[3]
    assert prints[0] != prints[2]


BROKEN = {
    "ant/empty.png": (b"", "empty, or no image"),
    "ant/text.jpg": (b"no picture at all", "empty, or no image"),
    "bee/narrow.png": (encoded(Image.new("RGB", (200, 15))), "200x15 has a side under 16"),
    "watch/bomb.png": (encoded(Image.new("1", (10_000, 9_000))), "DecompressionBombWarning"),
}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "shards", "parquet"])
def test_what_a_header_shows_to_be_broken_is_skipped_with_its_reason(tmp_path: Path, kind: str):
    damaged = {path: data for path, (data, _) in BROKEN.items()}
    files = dict(sorted({**invented_files(), **damaged}.items()))
    with open_photographs(WRITERS[kind](tmp_path / "photos", files)) as source:
        assert [photo.path for photo in source.photographs] == list(FILES_SIZES)
        assert sorted(each.path for each in source.skipped) == sorted(BROKEN)
        for each in source.skipped:
            assert BROKEN[each.path][1] in each.reason


def test_a_bomb_is_skipped_where_warnings_are_no_errors_too(tmp_path: Path):
    files = {**invented_files(), "ant/bomb.png": BROKEN["watch/bomb.png"][0]}
    write_folder(tmp_path, files)
    with pytest.warns(Image.DecompressionBombWarning):
        source = open_photographs(tmp_path)
    (skipped,) = source.skipped
    assert "10000x9000 is more than" in skipped.reason
    source.close()


@every_source
def test_a_truncated_image_is_broken_when_it_is_opened(tmp_path: Path, write: Writer):
    files = invented_files()
    files["bee/c.png"] = files["bee/c.png"][:-60]
    with open_photographs(write(tmp_path / "photos", files)) as source:
        assert len(source.photographs) == len(files)
        with pytest.raises(BrokenPhotographError, match=r"truncated|broken"):
            source.open(source.photographs[2])
        source.open(source.photographs[3])


def test_if_none_can_be_used_the_first_reason_is_told(tmp_path: Path):
    write_folder(tmp_path, {"ant/a.png": b"", "ant/b.png": b""})
    with pytest.raises(ValueError, match=r"none of the 2 in .* first, ant/a\.png: empty"):
        open_photographs(tmp_path)


def test_an_image_is_upright_and_rgb_whatever_its_file_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    sideways = invented_photograph(64, 32, 1)
    grey = invented_photograph(32, 32, 2).convert("L")
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    files = {
        "ant/a.png": encoded(sideways, exif=exif),
        "ant/b.png": encoded(grey),
        "ant/c.png": encoded(clear),
    }
    with open_photographs(write_folder(tmp_path, files)) as source:
        turned, grey_photo, clear_photo = source.photographs
        assert (turned.width, turned.height) == (32, 64)
        upright = sideways.transpose(Image.Transpose.ROTATE_270)
        assert source.open(turned).tobytes() == upright.tobytes()
        assert source.open(grey_photo).tobytes() == grey.convert("RGB").tobytes()
        assert set(source.open(clear_photo).tobytes()) == {255}


def test_every_kind_of_image_file_is_read(tmp_path: Path):
    image = invented_photograph(32, 48, 1)
    kinds = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
    kinds |= {"gif": "GIF", "tif": "TIFF"}
    files = {f"ant/deep/er/x.{suffix}": encoded(image, name) for suffix, name in kinds.items()}
    files["ant/notes.txt"] = b"no image"
    files["ant/.hidden.png"] = b"no image"
    with open_photographs(write_folder(tmp_path, files)) as source:
        assert sorted(Path(photo.path).suffix[1:] for photo in source.photographs) == sorted(kinds)
        assert {source.open(photo).size for photo in source.photographs} == {(32, 48)}
        assert source.skipped == ()


def test_an_image_in_no_class_is_skipped(tmp_path: Path):
    files = {**invented_files(), "loose.png": encoded(invented_photograph(32, 32, 9))}
    with open_photographs(write_folder(tmp_path, files)) as source:
        assert [(each.path, each.reason) for each in source.skipped] == [
            ("loose.png", "nothing says its class")
        ]


def test_classes_that_are_numbers_come_by_value(tmp_path: Path):
    image = encoded(invented_photograph(32, 32, 1))
    write_folder(tmp_path, {f"{number}/a.png": image for number in (10, 9, 100)})
    with open_photographs(tmp_path) as source:
        assert source.class_names == ("9", "10", "100")


def test_one_name_twice_is_two_photographs(tmp_path: Path):
    for shard, number in (("a", 1), ("b", 2)):
        image = encoded(invented_photograph(32, 32, number))
        write_tar(tmp_path / shard, {"ant/0.png": image})
    with open_photographs(tmp_path) as source:
        assert [photo.path for photo in source.photographs] == ["ant/0.png", "ant/0.png#2"]
        first, second = (source.open(photo).tobytes() for photo in source.photographs)
        assert first != second


def test_a_star_names_the_shards_of_one_split(tmp_path: Path):
    files = invented_files()
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}-0", files)
    with pytest.raises(ValueError, match=r"holds the splits \['test', 'train'\]; name one"):
        open_photographs(tmp_path)
    with open_photographs(tmp_path / "train-*.parquet") as source:
        assert len(source.photographs) == len(files)


def test_a_photograph_of_another_size_than_listed_is_broken(tmp_path: Path):
    path = write_folder(tmp_path, invented_files())
    with open_photographs(path) as source:
        photo = source.photographs[0]
        (path / photo.path).write_bytes(encoded(invented_photograph(30, 20, 1)))
        with pytest.raises(BrokenPhotographError, match="is 30x20, not 48x64"):
            source.open(photo)


def test_what_is_no_source_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image in a class"):
        open_photographs(tmp_path / "empty")
    with pytest.raises(ValueError, match="no such folder or archive"):
        open_photographs(tmp_path / "absent-*.tar")
    file = tmp_path / "photos.bin"
    file.write_bytes(io.BytesIO(b"x" * 2000).getvalue())
    with pytest.raises(ValueError, match="neither a zip, nor a tar, nor a parquet file"):
        open_photographs(file)
