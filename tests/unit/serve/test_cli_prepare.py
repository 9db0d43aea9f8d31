"""`fit-serve prepare` from a plain folder of photographs, as a newcomer types it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fit_serve.cli.command import app
from fit_serve.cli.prepare import read_class_names, variants_of
from fit_training.loop.data import LatentDataset
from fit_training.preparation.fit_rule import FitRule
from fit_training.preparation.image_variants import VariantConfig
from support.photograph_sources import invented_files, write_folder


def test_a_folder_is_all_that_is_needed_and_what_is_broken_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "photos", {**invented_files(), "ant/z.jpg": b""})
    latents = tmp_path / "latents"
    result = CliRunner().invoke(
        app, ["prepare", str(tmp_path / "photos"), str(latents)], env={"COLUMNS": "120"}
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{latents}: 20 images of 5 photographs in 3 classes\n"
    assert f"skipped 1, listed in {latents / 'skipped.jsonl'}:" in result.stderr
    assert "ant/z.jpg: empty, or no image that Pillow reads" in result.stderr
    assert len(LatentDataset(latents)) == 20
    assert read_class_names(latents / "classes.txt") == LatentDataset(latents).class_names


def test_a_source_that_is_none_is_said_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["prepare", str(tmp_path / "absent"), str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "\nerror: photographs: no such folder or archive" in result.stderr


def test_the_rule_and_its_options() -> None:
    assert variants_of("augment", True, None) == VariantConfig(num_variants=4)
    assert variants_of("augment", True, None, num_variants=7) == VariantConfig(num_variants=7)
    plain = VariantConfig(num_variants=1, augment=False)
    assert variants_of("augment", False, None) == plain
    large = variants_of("augment", True, None, min_size=64, max_size=272, max_enlargement=3.0)
    assert large == VariantConfig(
        min_area=64**2, max_area=272**2, max_side=400, max_enlargement=3.0
    )
    assert variants_of("fit", True, None) == FitRule(256)
    assert variants_of("fit", False, 512) == FitRule(512, mixed=False)


@pytest.mark.parametrize(
    ("rule", "num_variants", "max_side", "message"),
    [
        ("none", None, None, "rule: 'none' is neither augment nor fit"),
        ("fit", 3, None, "num_variants: 3 goes with --rule augment only"),
        ("augment", None, 256, "max_side: 256 goes with --rule fit only"),
    ],
)
def test_options_of_another_rule_are_refused(
    rule: str, num_variants: int | None, max_side: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        variants_of(rule, True, max_side, num_variants=num_variants)
