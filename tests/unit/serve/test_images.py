"""An image says what made it, and that a machine did."""

import io
import json
import xml.etree.ElementTree as ElementTree

import numpy
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile

from fit_serve.images import DIGITAL_SOURCE_TYPE, MEDIA_TYPES, XMP_IN_PNG, encode_image
from support.fake_engine import gradient

PARAMETERS = {"class": 'a <b> & "ç" ]]>', "seed": 2**63 - 1, "guidance_interval": [0.1, 0.9]}
SOFTWARE = "fit-serve 1 <&>"


def encoded(output_format: str, height: int = 48, width: int = 80) -> ImageFile:
    data = encode_image(gradient(height, width, 7), output_format, PARAMETERS, SOFTWARE)
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def xmp_packet(image: ImageFile) -> bytes:
    packet = image.info.get("xmp") or image.info[XMP_IN_PNG].encode()
    assert isinstance(packet, bytes)
    return packet


def test_a_png_gives_back_every_pixel() -> None:
    assert numpy.array_equal(numpy.asarray(encoded("png")), gradient(48, 80, 7))


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_lossy_image_is_close(output_format: str) -> None:
    pixels = numpy.asarray(encoded(output_format).convert("RGB")).astype(int)
    assert abs(pixels - gradient(48, 80, 7)).mean() < 3


@pytest.mark.parametrize("output_format", MEDIA_TYPES)
def test_the_media_type_is_that_of_the_file(output_format: str) -> None:
    image = encoded(output_format)
    assert image.get_format_mimetype() == MEDIA_TYPES[output_format]
    assert image.size == (80, 48)


@pytest.mark.parametrize("output_format", MEDIA_TYPES)
def test_every_format_carries_source_type_and_parameters_as_xmp(output_format: str) -> None:
    root = ElementTree.fromstring(xmp_packet(encoded(output_format)))
    texts = {element.tag.rpartition("}")[2]: element.text for element in root.iter()}
    assert texts["DigitalSourceType"] == DIGITAL_SOURCE_TYPE
    assert texts["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert texts["CreatorTool"] == SOFTWARE
    assert json.loads(texts["parameters"] or "") == {**PARAMETERS, "software": SOFTWARE}


def test_a_png_carries_the_parameters_as_text() -> None:
    text = encoded("png").info
    assert json.loads(text["parameters"]) == {**PARAMETERS, "software": SOFTWARE}
    assert text["Software"] == SOFTWARE


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(KeyError, match="gif"):
        encode_image(gradient(32, 32, 0), "gif", PARAMETERS, SOFTWARE)
