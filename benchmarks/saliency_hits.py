"""How often a saliency's tiles show what is asked about, and what each source costs.

python -m benchmarks.saliency_hits hits [--pages 150]      share of lines that tiles show in full, on paper and on textures
python -m benchmarks.saliency_hits cost                    milliseconds and peak memory at 2, 24, 100 and 400 megapixels
python -m benchmarks.saliency_hits scales [--pages 150]    the same by the scale of a family's grid, see scale_hits.py
python -m benchmarks.saliency_hits picture OUT.png         a textured page with the six tiles of two sources

Pages have seeds and textures that no training has seen. A line counts when `visibility` says that tiles show its key and value in
full, which is what the model was taught to answer. Novelty is that of the embedded model's global view.
"""

from __future__ import annotations

import argparse
import io
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.scale_hits import SEED as SCALES_SEED
from benchmarks.scale_hits import scales
from recipes.nano.fonts import check_fonts
from recipes.nano.grounds import HELD_OUT, on_texture
from recipes.nano.held_out import FIRST_SEED, is_inside
from recipes.nano.labels import TileBox
from recipes.nano.pages import VIEW_PX, Page, draw_page
from recipes.nano.questions import visibility
from vlm_edge.backends.onnx.saliency import OnnxSaliency
from vlm_edge.core import discover, host
from vlm_edge.core.bundle import open_bundle
from vlm_edge.pipeline.answering.encoders import SALIENCY_ROLE, open_encoder
from vlm_edge.pipeline.answering.tile_choice import cell_px_for
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.evaluating.metrics import wilson
from vlm_edge.vision import bands, preprocess, saliency, tiling
from vlm_edge.vision.sources import load_image

SEED = FIRST_SEED + 500_000
COUNTS = (2, 4, 6)
CELL_PX = VIEW_PX // 16
RANDOM_DRAWS = 5
GRID = (8, 8)
MEGAPIXELS = {2: (1600, 1250), 24: (6000, 4000), 100: (10_000, 10_000), 400: (20_000, 20_000)}


def global_features() -> Callable[[np.ndarray], np.ndarray]:
    """An image -> the tokens [P, D] of its global view."""
    bundle = open_bundle(NANO)
    encoder, prompt = open_encoder(bundle, "cpu", 1), discover.family(bundle.manifest.model.family).prompt(bundle)
    return lambda image: encoder.encode(prompt.views.pixels([preprocess.global_view(image, VIEW_PX)]))[0]


def sources() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """By name: an image -> a map of cells."""
    network = OnnxSaliency(open_bundle(NANO).path(SALIENCY_ROLE), threads=1)
    encode = global_features()

    def novelty(image: np.ndarray) -> np.ndarray:
        found = saliency.novelty(encode(image), grid=GRID)
        return saliency.to_cells(found, image_px=image.shape[1::-1], cell_px=CELL_PX)

    return {
        "detail": lambda image: saliency.detail_of_bands([image], cell_px=CELL_PX),
        "cnn": lambda image: saliency.cnn(image, network, cell_px=CELL_PX),
        "novelty": novelty,
    }


def placed(found: np.ndarray, image: np.ndarray, count: int) -> Sequence[tiling.Tile]:
    return tiling.salient_tiles(found, image_px=image.shape[1::-1], tile_px=VIEW_PX, cell_px=CELL_PX, max_tiles=count)


def random_tiles(rng: np.random.Generator, image: np.ndarray, count: int) -> list[tiling.Tile]:
    height, width = image.shape[:2]
    corners = [(int(rng.integers(width - VIEW_PX + 1)), int(rng.integers(height - VIEW_PX + 1))) for _ in range(count)]
    return [tiling.Tile(x, y, x + VIEW_PX, y + VIEW_PX, 0.0) for x, y in corners]


def shown(page: Page, tiles: Sequence[tiling.Tile]) -> tuple[int, int]:
    """Lines of the page that lie inside it: how many the tiles show, and how many there are."""
    boxes = [TileBox(tile.x0, tile.y0) for tile in tiles]
    lines = [line for line in page.lines if is_inside(line, page)]
    return sum(visibility(line, boxes) is True for line in lines), len(lines)


def hits(pages: int) -> None:
    check_fonts()
    maps = sources()
    counted: dict[tuple[str, str, int], list[int]] = {}
    for index in range(pages):
        rng = np.random.default_rng((SEED, index))
        page = draw_page(rng)
        for ground, image in (("paper", page.image), ("texture", on_texture(rng, page, HELD_OUT))):
            drawn = {name: source(image) for name, source in maps.items()}
            for count in COUNTS:
                tried = [(name, placed(found, image, count)) for name, found in drawn.items()]
                tried += [("random", random_tiles(rng, image, count)) for _ in range(RANDOM_DRAWS)]
                size = image.shape[1::-1]
                tried.append(("grid order", tiling.grid_tiles(image_px=size, tile_px=VIEW_PX, max_tiles=count)))
                for name, tiles in tried:
                    for place, number in enumerate(shown(page, tiles)):
                        counted.setdefault((ground, name, count), [0, 0])[place] += number
        if (index + 1) % 25 == 0:
            print(f"{index + 1} pages", file=sys.stderr, flush=True)
    print("| ground | source | " + " | ".join(f"{count} tiles" for count in COUNTS) + " | lines |")
    print("| --- | --- |" + " ---: |" * (len(COUNTS) + 1))
    for ground in ("paper", "texture"):
        for name in (*maps, "random", "grid order"):
            cells = []
            for count in COUNTS:
                right, n = counted[ground, name, count]
                low, high = wilson(right, n)
                cells.append(f"{right / n:.1%} ({100 * low:.1f}-{100 * high:.1f})")
            print(f"| {ground} | {name} | {' | '.join(cells)} | {n} |")


def write_png(path: Path, size: tuple[int, int], page: np.ndarray) -> None:
    """The page over and over on a PNG of any size, row by row, so that no more than a row of it is held."""
    width, height = size

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    across = -(-width // page.shape[1])
    rows = [np.tile(row, (across, 1))[:width].tobytes() for row in page]
    packer = zlib.compressobj(1)
    with path.open("wb") as out:
        out.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)))
        for y in range(height):
            if packed := packer.compress(b"\0" + rows[y % len(rows)]):
                out.write(chunk(b"IDAT", packed))
        out.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))


def array_of(size: tuple[int, int], page: np.ndarray) -> np.ndarray:
    """The image in memory, made without a decoder and without a peak of its own."""
    width, height = size
    out = np.empty((height, width, 3), np.uint8)
    for y in range(height):
        row = page[y % len(page)]
        for x in range(0, width, len(row)):
            out[y, x : x + len(row)] = row[: width - x]
    return out


def work(way: str, path: Path) -> Callable[[], object]:
    """What is to be measured, everything that it needs at hand already."""
    size = MEGAPIXELS[int(path.stem)]
    cell_px = cell_px_for(*size, VIEW_PX)
    page = np.asarray(Image.open(path.with_name("page.png")))
    if way == WAYS[0]:
        return lambda: saliency.detail_of_bands(open_by_parts(path), cell_px=cell_px)
    if way == WAYS[1]:
        return lambda: saliency.detail_of_bands([load_image(path).pixels], cell_px=cell_px)
    if way == WAYS[4]:
        features = global_features()(page)
        return lambda: saliency.to_cells(saliency.novelty(features, grid=GRID), image_px=size, cell_px=cell_px)
    if way == WAYS[5]:
        cells = -(-size[1] // cell_px), -(-size[0] // cell_px)
        found = np.resize(saliency.detail_of_bands([page], cell_px=cell_px), cells)
        return lambda: tiling.salient_tiles(found, image_px=size, tile_px=VIEW_PX, cell_px=cell_px, max_tiles=6)
    image = array_of(size, page)
    if way == WAYS[2]:
        return lambda: saliency.detail_of_bands([image], cell_px=cell_px)
    network = OnnxSaliency(open_bundle(NANO).path(SALIENCY_ROLE), threads=1)
    return lambda: saliency.cnn(image, network, cell_px=cell_px)


def open_by_parts(path: Path) -> Iterator[np.ndarray]:
    opened = bands.open_bands(path)
    if not opened.by_parts:
        raise RuntimeError(f"{path} was decoded whole")
    return opened.rows


WAYS = (
    "detail, PNG by parts",
    "detail, PNG whole",
    "detail, decoded",
    "cnn, decoded",
    "novelty, encoded",
    "placing 6 tiles",
)


def child(way: str, path: Path) -> None:
    """One measurement: CPU milliseconds, wall milliseconds, and growth of the peak in MiB over what was there before."""
    measured = work(way, path)
    before = host.rss_bytes()
    started, cpu = time.perf_counter(), time.process_time()
    measured()
    times = 1000 * (time.process_time() - cpu), 1000 * (time.perf_counter() - started)
    print(f"{times[0]:.0f} {times[1]:.0f} {max(0, host.peak_rss_bytes() - before) / 2**20:.0f}")


def cost(most: int) -> None:
    check_fonts()
    print("| megapixels | source | CPU ms | wall ms | peak above what was there, MiB |")
    print("| ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        page = draw_page(np.random.default_rng((SEED, 0))).image
        Image.fromarray(page).save(Path(folder) / "page.png")
        for megapixels, size in MEGAPIXELS.items():
            path = Path(folder) / f"{megapixels}.png"
            write_png(path, size, page)
            for way in WAYS:
                if megapixels > most and way == WAYS[1]:
                    continue
                command = [sys.executable, "-m", "benchmarks.saliency_hits", "child", way, str(path)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"| {megapixels} | {way} | {' | '.join(done.stdout.split())} |", flush=True)
            path.unlink()


def picture(out: Path, index: int) -> None:
    """Left detail, right cnn, the page cut to where its lines are; lines that no tile shows in full are red, others green."""
    check_fonts()
    rng = np.random.default_rng((SEED, index))
    page = draw_page(rng)
    image, maps, panels = on_texture(rng, page, HELD_OUT), sources(), []
    for name in ("detail", "cnn"):
        tiles = placed(maps[name](image), image, 6)
        panel = Image.fromarray(image)
        draw = ImageDraw.Draw(panel)
        for tile in tiles:
            draw.rectangle(tile.box, outline=(255, 0, 255), width=5)
        for line in page.lines:
            seen = visibility(line, [TileBox(tile.x0, tile.y0) for tile in tiles]) is True
            draw.rectangle(line.box, outline=(0, 170, 0) if seen else (230, 0, 0), width=3)
        ends = np.array([line.box for line in page.lines])
        x0, y0 = np.maximum(ends[:, :2].min(0) - VIEW_PX, 0).astype(int)
        x1, y1 = (ends[:, 2:].max(0) + VIEW_PX).astype(int)
        panels.append(np.asarray(panel)[y0:y1, x0:x1])
    gap = np.full((len(panels[0]), 16, 3), 255, np.uint8)
    joined = Image.fromarray(np.concatenate([panels[0], gap, panels[1]], axis=1))
    buffer = io.BytesIO()
    joined.quantize(255, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    out.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("hits").add_argument("--pages", type=int, default=150)
    commands.add_parser("cost").add_argument(
        "--whole-up-to", type=int, default=100, help="megapixels decoded in one piece"
    )
    by_scale = commands.add_parser("scales")
    by_scale.add_argument("--pages", type=int, default=150)
    by_scale.add_argument("--seed", type=int, default=SCALES_SEED)
    drawn = commands.add_parser("picture")
    drawn.add_argument("out", type=Path)
    drawn.add_argument("--page", type=int, default=2)
    measured = commands.add_parser("child")
    measured.add_argument("way", choices=WAYS)
    measured.add_argument("path", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "hits":
            hits(arguments.pages)
        case "cost":
            cost(arguments.whole_up_to)
        case "scales":
            scales(arguments.pages, arguments.seed)
        case "picture":
            picture(arguments.out, arguments.page)
        case _:
            child(arguments.way, arguments.path)


if __name__ == "__main__":
    main()
