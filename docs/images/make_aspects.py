"""Make `aspects.png` beside this file: the embedded model's own pictures at five aspect ratios.

Run it from anywhere with the project installed: `python docs/images/make_aspects.py`.
"""

import sys
from pathlib import Path

from fit_serve.app import assemble
from fit_serve.settings import load_settings
from fit_training.evaluation.contact_sheet import captioned_strip

FILE = Path(__file__).parent / "aspects.png"
# One seed for all, and not chosen: it is that of the README's first example.
SEED = 7
PICTURES = (
    ("sunflower", 128, 192),
    ("ketch", 192, 96),
    ("airplanes", 96, 224),
    ("bonsai", 160, 128),
    ("stop sign", 144, 144),
)


def main() -> None:
    """Ask the engine for all pictures at once and write them side by side."""
    assembly = assemble(load_settings({"model": "embedded"}), say=lambda _: None)
    limits = assembly.service.limits
    requests = [limits.complete(name, h, w, seed=SEED) for name, h, w in PICTURES]
    assembly.start()
    try:
        sequences = [sequence for request in requests for sequence in request.sequences()]
        results = [future.result() for future in assembly.engine.submit(sequences)]
    finally:
        assembly.stop()
    strip = captioned_strip(
        [
            (f"{name}\n{width} x {height}", result.pixels)
            for (name, height, width), result in zip(PICTURES, results, strict=True)
        ]
    )
    strip.save(FILE, optimize=True)
    sys.stdout.write(f"wrote {FILE}\n")


if __name__ == "__main__":
    main()
