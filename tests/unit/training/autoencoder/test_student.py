"""Laws of the student: it starts with the weights it is given, or says why it cannot."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from fit_models.autoencoder import WEIGHTS_NAME, Autoencoder
from fit_training.autoencoder.student import PartShape, export_student, load_start, new_student
from support.small_autoencoders import write_small_autoencoder

DECODER, ENCODER = PartShape(8, (1, 1, 1, 0)), PartShape(8, (0, 1, 1, 1))


def test_a_start_gives_its_weights_and_an_export_keeps_them(tmp_path):
    start = write_small_autoencoder(tmp_path / "start", seed=5)
    student = new_student(DECODER, ENCODER)
    load_start(student, start)
    exported = export_student(student, tmp_path)
    wanted = load_file(start / WEIGHTS_NAME)
    for name, tensor in load_file(exported / WEIGHTS_NAME).items():
        assert torch.equal(tensor, wanted[name].half())
    assert Autoencoder.from_folder(exported).latent_channels == 4


def test_a_start_of_other_shapes_is_refused(tmp_path):
    start = write_small_autoencoder(tmp_path / "start")
    with pytest.raises(ValueError, match=r"start: decoder.* has shape \(8.*run is \(16"):
        load_start(new_student(PartShape(16, (1, 1, 1, 0)), ENCODER), start)
    with pytest.raises(ValueError, match=r"start: .* (has|lacks) .*shape of a run"):
        load_start(new_student(PartShape(8, (2, 1, 1, 0)), ENCODER), start)


def test_a_start_that_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"start: .* holds no {WEIGHTS_NAME}"):
        load_start(new_student(DECODER, ENCODER), tmp_path)


def test_tensors_that_are_not_the_students_are_refused(tmp_path):
    start = write_small_autoencoder(tmp_path / "start")
    tensors = load_file(start / WEIGHTS_NAME) | {"middle.weight": torch.zeros(1)}
    save_file(tensors, start / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=r"start: .* has middle.weight"):
        load_start(new_student(DECODER, ENCODER), start)
