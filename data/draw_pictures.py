"""Draw the bundled pictures: four shapes of any size, place and turn on a noisy ground.

Writes  OUT/{train,valid,test}/{circle,cross,square,triangle}/<number>.jpg

Made for seeing the stages of vision/ at work in minutes; no figure of a network on them says anything of real pictures.
"""
import io
import math
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by path, from any folder

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import run_stage

# ---- settings: edit here, or for one run: --out /tmp/pictures -------------------------------------
OUT = "data/pictures"           # folder that is made; it must not exist yet
SIDE = 32                       # pixels of a side
TRAIN = 36                      # pictures a class
VALID = 8                       # pictures a class
TEST = 16                       # pictures a class
QUALITY = 85                    # of the JPEG files
SEED = 1                        # of every picture
# --------------------------------------------------------------------------------------------------

SHAPES = ("circle", "cross", "square", "triangle")


def corners(shape, radius, turn):
    """Corners of a shape around 0, 0."""
    if shape == "cross":
        thin = radius * 0.32
        plain = [(-thin, -radius), (thin, -radius), (thin, -thin), (radius, -thin), (radius, thin), (thin, thin),
                 (thin, radius), (-thin, radius), (-thin, thin), (-radius, thin), (-radius, -thin), (-thin, -thin)]
        return [(x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)) for x, y in plain]
    count = {"circle": 48, "square": 4, "triangle": 3}[shape]
    return [(radius * math.cos(turn + 2 * math.pi * i / count), radius * math.sin(turn + 2 * math.pi * i / count))
            for i in range(count)]


def drawn(shape, rng):
    """A picture of a shape, drawn at four times its side and made smaller."""
    # so much alike in colour that no picture can be learned by it
    ground, ink = (tuple(tone + rng.randrange(-15, 16) for _ in range(3)) for tone in (60, 200))
    large = 4 * SIDE
    radius = large * rng.uniform(0.25, 0.42)
    x, y = (rng.uniform(radius, large - radius) for _ in range(2))
    image = Image.new("RGB", (large, large), ground)
    places = [(x + dx, y + dy) for dx, dy in corners(shape, radius, rng.uniform(0, 2 * math.pi))]
    ImageDraw.Draw(image).polygon(places, fill=ink)
    pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).astype(np.float32)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.uniform(2, 10), pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def main(settings):
    check(SIDE >= 8, f"SIDE is {SIDE}; it must be at least 8")
    out = resolve(OUT)
    if out.exists():
        raise UserError(f"{shown(out)} is there already: name another folder with --out")
    count = total = 0
    for split, wanted in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        for shape in SHAPES:
            folder = out / split / shape
            folder.mkdir(parents=True)
            for number in range(wanted):
                made = io.BytesIO()
                drawn(shape, random.Random(f"{SEED}/{split}/{shape}/{number}")).save(made, "JPEG", quality=QUALITY)
                (folder / f"{number:03}.jpg").write_bytes(made.getvalue())
                count, total = count + 1, total + len(made.getvalue())
    print(f"wrote {count} pictures, {total / 1e3:.0f} kB, in {shown(out)}")


if __name__ == "__main__":
    run_stage(main, globals())
