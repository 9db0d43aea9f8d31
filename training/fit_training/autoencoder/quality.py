"""How good a distilled autoencoder is: numbers for its card.

Knows photographs, the student and its teacher. Knows nothing of training.
"""

from dataclasses import dataclass, fields

import torch
from PIL import Image
from torch import Tensor

from fit_models.autoencoder import Autoencoder
from fit_training.autoencoder.image_pairs import to_tensor
from fit_training.autoencoder.reconstruction import psnr
from fit_training.preparation.decoding import BrokenPhotographError
from fit_training.preparation.photographs import PhotographSource

MULTIPLE = 16  # sides are cut to it: a token of a patch-2 transformer


@dataclass(frozen=True)
class AutoencoderQuality:
    """Means over photographs, in dB where it says psnr.

    `teacher_psnr`: the teacher's encoder and decoder, against the photograph. `decoder_psnr` and
    `decoder_teacher_psnr`: the student's decoder on the teacher's latents, against the photograph
    and against the teacher's decoded image. `psnr`: the student's encoder and decoder, against the
    photograph. `latent_rmse`: the student's latents against the teacher's, root of the mean square,
    and `latent_rms` that of the teacher's latents themselves.
    """

    teacher_psnr: float
    decoder_psnr: float
    decoder_teacher_psnr: float
    psnr: float
    latent_rmse: float
    latent_rms: float


def measure_autoencoder(
    student: Autoencoder, teacher: Autoencoder, archive: PhotographSource
) -> AutoencoderQuality:
    """Measure a student on every photograph of an archive, at its own size cut to multiples of 16.

    Each autoencoder computes in the type its weights have. Broken photographs do not count.
    """
    measured = []
    for photograph in archive.photographs:
        try:
            photo_13HW = cut_to_multiple(archive.open(photograph))[None]
        except BrokenPhotographError:
            continue
        measured.append(_measure_one(student, teacher, photo_13HW))
    means = torch.tensor(measured, dtype=torch.float64).mean(dim=0).tolist()
    names = [each.name for each in fields(AutoencoderQuality)]
    values = dict(zip(names, means, strict=True))
    for name in ("latent_rmse", "latent_rms"):
        values[name] = values[name] ** 0.5
    return AutoencoderQuality(**values)


def cut_to_multiple(photograph: Image.Image) -> Tensor:
    """Return the middle of an RGB image as uint8 [3, H, W], both sides multiples of 16.

    Raises `ValueError` for an image with a side under 16 pixels.
    """
    width, height = (side - side % MULTIPLE for side in photograph.size)
    if not width or not height:
        raise ValueError(f"photograph: {photograph.size} has a side under {MULTIPLE} pixels")
    left, top = (photograph.width - width) // 2, (photograph.height - height) // 2
    return to_tensor(photograph.crop((left, top, left + width, top + height)))


def _measure_one(student: Autoencoder, teacher: Autoencoder, photo_13HW: Tensor) -> list[float]:
    """Return one photograph's values in the order of `AutoencoderQuality`, latents as squares."""
    wanted_14hw, latents_14hw = teacher.encode(photo_13HW), student.encode(photo_13HW)
    teachers_13HW, decoded_13HW = teacher.decode(wanted_14hw), student.decode(wanted_14hw)
    return [
        psnr(teachers_13HW, photo_13HW).item(),
        psnr(decoded_13HW, photo_13HW).item(),
        psnr(decoded_13HW, teachers_13HW).item(),
        psnr(student.decode(latents_14hw), photo_13HW).item(),
        (latents_14hw - wanted_14hw).square().mean().item(),
        wanted_14hw.square().mean().item(),
    ]
