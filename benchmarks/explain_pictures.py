"""Pictures of `run --explain` on a page, a photo-like image and a texture like a slide's, with the embedded model.

python -m benchmarks.explain_pictures [FOLDER]

They are drawn here from fixed seeds and carry no data of others. FOLDER: benchmarks/results by default.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from recipes.nano.fonts import FONT_ROOT, check_fonts
from vlm_edge import AskOptions, Pipeline
from vlm_edge.pipeline.explaining.explain import explain_answer

RESULTS = Path(__file__).parent / "results"
WIDTH_PX = 1100
"""To which pictures are shrunk before they are kept."""


def page() -> Image.Image:
    """A letter of which a few lines are set, and a round stamp."""
    sheet = Image.new("RGB", (1240, 1754), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(FONT_ROOT / "dejavu/DejaVuSansMono.ttf", 14)
    for line, text in enumerate(("name: orla", "ref: in-4325", "date: 12-08-2026")):
        draw.text((130, 150 + 24 * line), text, "black", font)
    for line, text in enumerate(("item: 12.40", "item: 7.95", "total: 763.07")):
        draw.text((820, 1300 + 24 * line), text, "black", font)
    draw.ellipse((200, 1250, 420, 1470), outline=(40, 60, 160), width=8)
    return sheet


def photo() -> Image.Image:
    """A smooth sky and ground with grain; the only fine detail is a lettered sign and some far branches."""
    rng = np.random.default_rng(1)
    height, width = 1200, 1800
    y, x = np.mgrid[0:height, 0:width] / height
    shades = np.stack([110 + 90 * y, 150 + 40 * np.sin(2 * x + y), 220 - 110 * y], -1)
    scene = Image.fromarray(_grain(shades, rng, 3))
    draw, font = ImageDraw.Draw(scene), ImageFont.load_default(26)
    draw.rectangle((1150, 640, 1420, 760), fill=(235, 225, 190), outline=(60, 50, 40), width=6)
    draw.text((1180, 660), "code: k7-204", (30, 30, 30), font)
    draw.text((1180, 700), "total: 48.10", (30, 30, 30), font)
    for _ in range(90):
        a, b = rng.uniform((150, 250), (420, 420)), rng.normal(0, 45, 2)
        draw.line((*a, *(a + b)), fill=(70, 60, 40), width=2)
    return scene


def slide() -> Image.Image:
    """Stained tissue under a microscope, drawn: pale ground, pink strands, and clusters of dark nuclei in two places."""
    rng = np.random.default_rng(2)
    side = 2000
    ground = np.full((side, side, 3), (243, 236, 242), float)
    strands = rng.normal(size=(side // 20, side // 20)).astype(np.float32)
    smooth = Image.fromarray(strands).resize((side, side), Image.Resampling.BICUBIC)
    share = (np.asarray(smooth)[..., None] * 0.5).clip(0, 0.5)
    tissue = Image.fromarray(_grain(ground * (1 - share) + np.array((226, 150, 190)) * share, rng, 2))
    draw = ImageDraw.Draw(tissue)
    for centre, count, spread in (((520, 640), 260, 110), ((1460, 1380), 320, 130), ((1000, 1000), 60, 600)):
        for x, y in rng.normal(centre, spread, (count, 2)):
            a, b = rng.uniform(4, 9, 2)
            draw.ellipse((x - a, y - b, x + a, y + b), fill=(88, 50, 130))
    return tissue.filter(ImageFilter.GaussianBlur(0.7))


def _grain(shades: NDArray[np.float64], rng: np.random.Generator, amount: float) -> NDArray[np.uint8]:
    return (shades + rng.normal(0, amount, shades.shape)).clip(0, 255).astype(np.uint8)


QUESTIONS = {"page": "what is the total?", "photo": "what is the code?", "slide": "How many circles do you see?"}
IMAGES = {"page": page, "photo": photo, "slide": slide}


def main(out: Path) -> None:
    """Ask about each image, and keep what --explain draws."""
    check_fonts()
    pipeline = Pipeline.load(threads=1)
    geometry = pipeline.bundle.manifest.model.geometry
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in IMAGES.items():
            source, seen = Path(folder) / f"{name}.png", Path(folder) / f"{name}_seen.png"
            draw().save(source)
            answer = pipeline.ask(source, QUESTIONS[name], AskOptions())
            explain_answer(source, answer, seen, geometry=geometry, question=QUESTIONS[name])
            picture = Image.open(seen).convert("RGB")
            picture.thumbnail((WIDTH_PX, 10 * WIDTH_PX), Image.Resampling.LANCZOS)
            picture.quantize(256, Image.Quantize.MAXCOVERAGE).save(out / f"explain_{name}.png", optimize=True)
            counts = answer.tokens
            print(
                f"{name}: {answer.text!r}, {len(answer.tiles)} tiles, {counts.visual_before} -> {counts.visual_after} tokens"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
