"""Laws of the quality numbers: a student that is the teacher has the teacher's."""

import math

import pytest

from fit_models.autoencoder import Autoencoder
from fit_training.autoencoder.quality import cut_to_multiple, measure_autoencoder
from fit_training.preparation.sources.opening import open_photographs
from support.photograph_archives import invented_photograph, write_archive
from support.small_autoencoders import write_small_autoencoder


def test_the_teacher_as_its_own_student_errs_nowhere(tmp_path):
    teacher = Autoencoder.from_folder(write_small_autoencoder(tmp_path / "teacher"))
    photographs = [("owl", 40, 33), ("fox", 16, 50)]
    with open_photographs(write_archive(tmp_path / "photographs.zip", photographs)) as archive:
        same = measure_autoencoder(teacher, teacher, archive)
        other = Autoencoder.from_folder(write_small_autoencoder(tmp_path / "other", seed=1))
        different = measure_autoencoder(other, teacher, archive)
    assert same.latent_rmse == 0 < same.latent_rms
    assert same.psnr == same.decoder_psnr == same.teacher_psnr > 0
    assert math.isinf(same.decoder_teacher_psnr)
    assert different.teacher_psnr == same.teacher_psnr
    assert different.latent_rms == same.latent_rms
    assert different.latent_rmse > 0
    assert math.isfinite(different.decoder_teacher_psnr)


@pytest.mark.parametrize(("size", "cut"), [((40, 33), (32, 32)), ((16, 47), (16, 32))])
def test_sides_are_cut_to_multiples_of_16(size, cut):
    width, height = size
    height, width = cut_to_multiple(invented_photograph(width, height, 0)).shape[1:]
    assert (width, height) == cut


def test_a_photograph_under_one_token_is_refused():
    with pytest.raises(ValueError, match="side under 16 pixels"):
        cut_to_multiple(invented_photograph(15, 40, 0))
