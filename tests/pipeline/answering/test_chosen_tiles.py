"""Salient tiles of families with a grid of their own, against what transformers makes of the whole grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests import runnable, tiny_vlms
from tests.image_bytes import noise
from tests.runnable import QUESTIONS, Runnable, Variant
from vlm_edge import AskOptions
from vlm_edge.core.geometry import ImageLayout, visual_token_count
from vlm_edge.models import packed_settings
from vlm_edge.models.qwen_prompt import rope_positions
from vlm_edge.pipeline.answering.question_plan import source_header
from vlm_edge.pipeline.answering.tile_choice import Choice, finest

QUESTION = QUESTIONS[0]
PINPOINTS = [[28, 56], [56, 28], [56, 84]]
SIZES = {
    "llava_next": (84, 56), "internvl": (56, 56), "idefics3": (84, 56), "qwen2_vl": (84, 56), "qwen2_5_vl": (112, 84)
}  # fmt: skip
"""(width, height) whose own grid has several rows and columns of 28 px, and shrinks nothing."""
OF_VIEWS = pytest.mark.parametrize("made", ["llava_next", "internvl", "idefics3"], indirect=True)
"""Tiles are views of their own; the others' towers see all patches together."""
OF_PATCHES = pytest.mark.parametrize("made", ["qwen2_vl", "qwen2_5_vl"], indirect=True)


def next_of_six():
    model = tiny_vlms.llava_next()
    model.config.image_grid_pinpoints = PINPOINTS
    return model


@pytest.fixture(scope="module", params=SIZES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runnable]:
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_settings, "TILE_PX", 28)
        six = Variant("llava_next", next_of_six, {"image_grid_pinpoints": PINPOINTS})
        patch.setitem(runnable.VARIANTS, "llava_next", six)
        yield runnable.make(name, tmp_path_factory.mktemp(name))


def auto(tiles: int) -> AskOptions:
    return AskOptions(tiling="auto", max_tiles=tiles, max_new_tokens=1)


def with_detail(size: tuple[int, int], cells: list[tuple[int, int]]) -> np.ndarray:
    """White but for noise in the middle of cells (row, column) of 28 px: all over, it would be taken for the image's grain."""
    image = np.full((size[1], size[0], 3), 255, np.uint8)
    for row, col in cells:
        part = image[28 * row + 7 : 28 * row + 21, 28 * col + 7 : 28 * col + 21]
        part[:] = noise(*part.shape[:2], seed=row * 9 + col)
    return image


def by_transformers(made: Runnable, image: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Token ids [L] and the embeddings [L, D] that transformers' decoder is given for an image with its whole grid."""
    held: dict[str, torch.Tensor] = {}

    def keep(_module, _args, given) -> None:
        held["embeds"] = given["inputs_embeds"]

    inputs = made.inputs(QUESTION, [image])
    hook = made.model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            made.model(**inputs)
    finally:
        hook.remove()
    return inputs["input_ids"][0].tolist(), held["embeds"][0].numpy()


def test_all_tiles_are_what_transformers_gives_its_decoder(made: Runnable) -> None:
    pipeline, engine = made.pipeline()
    cols, rows = (side // 28 for side in SIZES[made.family])
    image = with_detail(SIZES[made.family], [(row, col) for row in range(rows) for col in range(cols)])
    answer = pipeline.ask(
        image, QUESTION, auto(4 if made.family == "internvl" else pipeline.bundle.manifest.limits.max_tiles)
    )
    ids, embeds = by_transformers(made, image)
    assert answer.tokens.prompt == len(ids)
    np.testing.assert_allclose(engine.embeds.numpy(), embeds, atol=2e-5)
    _, logits = made.generate(made.inputs(QUESTION, [image]), 1)
    np.testing.assert_allclose(engine.logits[0], logits[0], atol=1e-4 * np.abs(logits).max())
    if engine.mrope:
        inputs = {k: v for k, v in made.inputs(QUESTION, [image]).items() if k != "pixel_values"}
        np.testing.assert_array_equal(engine.positions[0], made.model.model.get_rope_index(**inputs)[0][:, 0].numpy())


@OF_VIEWS
@pytest.mark.parametrize("cells", [[(0, 1)], [(0, 0), (1, 1)], [(1, 0)], [(0, 1), (1, 0), (1, 1)]], ids=str)
def test_a_subset_is_transformers_sequence_without_the_other_tiles(
    made: Runnable, cells: list[tuple[int, int]]
) -> None:
    image = with_detail(SIZES[made.family], cells)
    pipeline, engine = made.pipeline()
    answer = pipeline.ask(image, QUESTION, auto(3))
    boxes = [(28 * col, 28 * row, 28 * col + 28, 28 * row + 28) for row, col in cells]
    assert [tile.box for tile in answer.tiles] == boxes
    ids, embeds = by_transformers(made, image)
    kept = globals()[f"kept_of_{made.family}"](made, ids, cells)
    np.testing.assert_allclose(engine.embeds.numpy(), embeds[kept], atol=2e-5)
    assert answer.tokens.prompt == len(kept)


def image_places(made: Runnable, ids: list[int]) -> list[int]:
    return [i for i, token in enumerate(ids) if token == made.model.config.image_token_id]


def kept_of_internvl(made: Runnable, ids: list[int], cells: list[tuple[int, int]]) -> list[int]:
    """Four tokens a view, tiles row by row, the thumbnail last."""
    places = image_places(made, ids)
    gone = {places[4 * (2 * r + c) + i] for r in range(2) for c in range(2) for i in range(4) if (r, c) not in cells}
    return [i for i in range(len(ids)) if i not in gone]


def kept_of_idefics3(made: Runnable, ids: list[int], cells: list[tuple[int, int]]) -> list[int]:
    """Each tile goes with its two markers, and a row without tiles with the line's end behind it."""
    places = image_places(made, ids)
    gone: set[int] = set()
    for r in range(2):
        for c in range(3):
            if (r, c) not in cells:
                first = places[4 * (3 * r + c)]
                gone |= set(range(first - 2, first + 4))
        if not any(row == r for row, _ in cells):
            # behind the first row one end of line, behind the last a double one, which stays with one row as with two
            gone |= {places[4 * (3 * r + 2)] + 4} if r == 0 else {places[4 * 3] - 3}
    return [i for i in range(len(ids)) if i not in gone]


def kept_of_llava_next(made: Runnable, ids: list[int], cells: list[tuple[int, int]]) -> list[int]:
    """16 tokens of the whole, then 8 rows of 12 tokens and a newline."""
    places = image_places(made, ids)[16:]
    gone = set()
    for y in range(8):
        for x in range(12):
            if (y // 4, x // 4) not in cells:
                gone.add(places[13 * y + x])
        if not any(row == y // 4 for row, _ in cells):
            gone.add(places[13 * y + 12])
    return [i for i in range(len(ids)) if i not in gone]


@OF_PATCHES
def test_patches_that_stay_keep_their_places(made: Runnable) -> None:
    """Qwen-VL: an overview, then the chosen patches; the tower by hand on those, the positions by a loop."""
    width, height = SIZES[made.family]
    cells = [(0, 1), (1, 2)]
    image = with_detail((width, height), cells)
    pipeline, engine = made.pipeline()
    answer = pipeline.ask(image, QUESTION, auto(3))
    geometry = made.bundle.manifest.model.geometry
    overview = geometry.overview((width, height))
    layout = geometry.subset((width, height), geometry.scales((width, height))[0], cells)
    grid = layout.token_grid
    chosen = [(y, x) for y in range(grid[0]) for x in range(grid[1]) if (y // 2, x // 2) in cells]
    assert answer.tokens.visual_before == overview.visual_tokens + len(chosen) == layout.visual_tokens
    expected, at = [], 0
    ids = pipeline._prompt.tokens(QUESTION, [layout])
    seen = 0
    for token in ids:
        if token != pipeline._prompt.image_id:
            expected.append((at, at, at))
            at += 1
            continue
        rows, cols = overview.token_grid if seen == 0 else grid
        places = [(y, x) for y in range(rows) for x in range(cols)] if seen == 0 else chosen
        expected += [(at, at + y, at + x) for y, x in places]
        at += max(rows, cols)
        seen += 1
    np.testing.assert_array_equal(engine.positions[0], np.array(expected).T)
    ends = made.processor.tokenizer.convert_tokens_to_ids(["<|vision_end|>", "<|vision_start|>"])
    first = ids.index(pipeline._prompt.image_id)
    assert list(ids[first + 1 : first + 3]) == ends
    rows_of_tiles = engine.embeds[first + overview.visual_tokens + 2 :][: len(chosen)]
    np.testing.assert_allclose(rows_of_tiles.numpy(), tower_by_hand(made, image, chosen, grid), atol=3e-5)


def tower_by_hand(
    made: Runnable, image: np.ndarray, chosen: list[tuple[int, int]], grid: tuple[int, int]
) -> np.ndarray:
    """transformers' own layers over some merged tokens of an image, [tokens, D]: patches elsewhere are not there at all."""
    tower = made.model.model.visual
    pixels = torch.as_tensor(np.asarray(made.inputs(QUESTION, [image])["pixel_values"]))
    kept = [4 * (y * grid[1] + x) + i for y, x in chosen for i in range(4)]
    places = [(2 * y + i // 2, 2 * x + i % 2) for y, x in chosen for i in range(4)]
    windows = [(y // 4, x // 4) for y, x in chosen for _ in range(4)]
    with torch.no_grad():
        hidden = tower.patch_embed(pixels)[kept]
        cos, sin = (part.float() for part in tower_rotation(tower, hidden, torch.tensor(places)))
        full = set(getattr(tower, "fullatt_block_indexes", range(99)))
        for number, block in enumerate(tower.blocks):
            together = torch.ones(len(kept), len(kept), dtype=torch.bool)
            if number not in full:
                together = torch.tensor([[one == other for other in windows] for one in windows])
            normed = block.norm1(hidden)
            q, k, v = block.attn.qkv(normed).reshape(len(kept), 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
            half = q.shape[-1] // 2
            q, k = (part * cos + torch.cat((-part[..., half:], part[..., :half]), -1) * sin for part in (q, k))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=together)
            hidden = hidden + block.attn.proj(mixed.permute(1, 0, 2).reshape(len(kept), -1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        return tower.merger(hidden).numpy()


def tower_rotation(tower, hidden: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [T, head_dim] of patches at (row, column), by the rule: the first half of the angles for rows."""
    size = tower.blocks[0].attn.qkv.in_features // tower.blocks[0].attn.num_heads
    inverse = 1.0 / (10000.0 ** (torch.arange(0, size // 2, 2).float() / (size // 2)))
    angles = torch.cat([places[:, :1] * inverse, places[:, 1:] * inverse], dim=1)
    both = torch.cat((angles, angles), dim=1)
    return both.cos().to(hidden.dtype), both.sin().to(hidden.dtype)


PICTURES = {
    "blank": np.full((150, 200, 3), 255, np.uint8),
    "noise": noise(150, 200),
    "one column": noise(180, 1),
    "long": noise(20, 3000),
    "dot": noise(1, 1),
}


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("tiles", [1, 3])
def test_what_is_shown_is_within_its_plan(made: Runnable, picture: str, tiles: int) -> None:
    image = PICTURES[picture]
    pipeline, _ = made.pipeline()
    answer = pipeline.ask(image, QUESTION, auto(tiles))
    header = source_header(image, 1 << 30)
    geometry = made.bundle.manifest.model.geometry
    most = visual_token_count(geometry, image_px=(header.width, header.height), tiles=tiles)
    assert answer.tokens.visual_before <= most
    assert len(answer.tiles) <= tiles
    if picture == "blank":
        assert answer.tiles == ()
    for tile in answer.tiles:
        x0, y0, x1, y1 = tile.box
        assert 0 <= x0 < x1 <= header.width
        assert 0 <= y0 < y1 <= header.height


@OF_PATCHES
def test_positions_of_a_whole_grid_do_not_depend_on_how_it_is_told(made: Runnable) -> None:
    geometry = made.bundle.manifest.model.geometry
    size = SIZES[made.family]
    own = geometry.layout(size)
    scale = geometry.scales(size)[0]
    everything = geometry.subset(size, scale, scale.shown_cells)
    spans = [(3, None), (own.visual_tokens, own), (2, None)]
    told = [(3, None), (own.visual_tokens, everything), (2, None)]
    np.testing.assert_array_equal(rope_positions(spans), rope_positions(told))


def test_several_images_have_tiles_of_their_own(made: Runnable) -> None:
    size = SIZES[made.family]
    images = [with_detail(size, [(0, 1)]), with_detail(size, [(1, 0), (1, 1)])]
    pipeline, _ = made.pipeline()
    alone = [pipeline.ask(image, QUESTION, auto(2)) for image in images]
    together = pipeline.ask(images, QUESTION, auto(2))
    assert (together.tiles, together.other_tiles) == (alone[0].tiles, (alone[1].tiles,))
    assert len({alone[0].tiles, alone[1].tiles, ()}) == 3
    assert together.tokens.visual_before == sum(answer.tokens.visual_before for answer in alone)
    told = together.to_json()
    assert [tile["box"] for tile in told["tiles_of_other_images"][0]] == [list(tile.box) for tile in alone[1].tiles]
    assert "tiles_of_other_images" not in alone[0].to_json()
    assert together.planned_peak_bytes >= max(answer.planned_peak_bytes for answer in alone)


@pytest.mark.parametrize(("shares", "taken"), [((0.75, 1.0), 0), ((0.74, 0.2), 1), ((0.1,), 0), ((1.0, 1.0), 0)])
def test_the_finest_scale_that_holds_enough_is_taken(shares: tuple[float, ...], taken: int) -> None:
    made = [Choice(ImageLayout((28, 28), (0, 0, 28, 28), 1, 4), (), (), share) for share in shares]
    assert finest(made) is made[taken]
    assert finest(made, 0.0) is made[0]
