"""run --explain: what is drawn where, what the page says, and that a failure leaves no file behind."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_edge.core.geometry import PatchGeometry, TokenGeometry
from vlm_edge.errors import BadImage, BadInput
from vlm_edge.pipeline.answering.answer import Answer, TokenCounts
from vlm_edge.pipeline.explaining import picture, view_panels
from vlm_edge.pipeline.explaining.explain import check_target, explain_answer
from vlm_edge.pipeline.explaining.lettering import Letters, shortened, wrap
from vlm_edge.pipeline.explaining.picture import BOX, PAPER, TILE, choose_layout, compose, source_panel
from vlm_edge.pipeline.explaining.view_panels import token_map
from vlm_edge.vision.grounding import LabelledBox, LabelledPoint
from vlm_edge.vision.tiling import Tile

GEOMETRY = TokenGeometry(view_px=112, grid=(8, 8), separator_tokens=1)
GREY = 200
EVERY_TOKEN = tuple(range(64))
ANSWER = Answer(
    text="42",
    tokens=TokenCounts(visual_before=128, visual_after=100, prompt=120, generated=1),
    tiles=(Tile(300, 100, 412, 212, 0.75),),
    boxes=(LabelledBox("", (30, 300, 130, 380)),),
    points=(),
    timings_ms={"vision": 1.5, "total": 12.25},
    planned_peak_bytes=300 << 20,
    measured_peak_bytes=200 << 20,
    stop_reason="eos",
    bundle="nano",
    device="cpu",
    members=(EVERY_TOKEN, EVERY_TOKEN),
)


def plain(width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def colour(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = image.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def draw(image: np.ndarray, answer: Answer, path: Path, question: str = "why?") -> Image.Image:
    explain_answer(image, answer, path, geometry=GEOMETRY, question=question)
    with Image.open(path) as written:
        written.load()
        return written


def test_a_tile_is_outlined_where_it_is_and_nowhere_else() -> None:
    panel = source_panel(plain(600, 400), (600, 400), ANSWER)  # shown at full size, within a frame of 1 px
    for x, y in [(301, 150), (411, 150), (350, 101), (350, 211), (302, 102), (412, 212)]:
        assert colour(panel, x, y) == TILE, (x, y)
    for x, y in [(299, 150), (306, 150), (350, 107), (350, 215), (420, 150)]:
        assert colour(panel, x, y) == (GREY,) * 3, (x, y)


def test_a_box_of_the_answer_has_the_other_colour() -> None:
    panel = source_panel(plain(600, 400), (600, 400), ANSWER)
    assert [colour(panel, x, y) for x, y in [(32, 340), (129, 340), (80, 302), (80, 379)]] == [BOX] * 4
    assert colour(panel, 80, 340) == (GREY,) * 3


def test_what_was_clipped_says_so_in_the_picture_and_on_the_page(tmp_path: Path) -> None:
    labelled = replace(
        ANSWER,
        boxes=(LabelledBox("cat", (30, 300, 130, 400), clipped=True),),
        points=(LabelledPoint("eye", (500, 300)), LabelledPoint("", (600, 0), clipped=True)),
    )
    plain_words = replace(ANSWER, boxes=(LabelledBox("cat", (30, 300, 130, 400)),), points=labelled.points[:1])
    widths = []
    for answer in (labelled, plain_words):
        panel = source_panel(plain(600, 400), (600, 400), answer)
        badge = [x for x in range(31, 400) if colour(panel, x, 301 - 20) == BOX]
        widths.append(badge[-1] - badge[0])
    assert widths[0] > widths[1] + 30
    assert colour(panel, 500 + 1 + 2, 300 + 1 + 12 + 2) == BOX  # the point's own label, below its ring
    explain_answer(plain(600, 400), labelled, tmp_path / "seen.html", geometry=GEOMETRY, question="why?")
    page = (tmp_path / "seen.html").read_text()
    assert "<td>cat</td><td>30, 300, 130, 400</td><td>yes</td>" in page
    assert "<td>eye</td><td>500, 300</td><td></td>" in page
    assert "<td>-</td><td>600, 0</td><td>yes</td>" in page


def test_a_point_of_the_answer_is_ringed() -> None:
    panel = source_panel(plain(600, 400), (600, 400), replace(ANSWER, points=(LabelledPoint("", (500, 300)),)))
    assert colour(panel, 501 + 9, 301) == BOX
    assert colour(panel, 501, 301) == (GREY,) * 3


@pytest.mark.parametrize(("size", "scale"), [((2800, 1400), 0.5), ((600, 400), 1), ((60, 40), 9)])
def test_tiles_and_boxes_follow_the_scale(size: tuple[int, int], scale: float) -> None:
    width, height = size
    tile = Tile(width // 2, height // 2, width, height, 1.0)
    panel = source_panel(plain(*size), size, replace(ANSWER, tiles=(tile,), boxes=()))
    assert panel.size == (round(width * scale) + 2, round(height * scale) + 2)
    # the right edge, half way down the tile, and the left edge below the number
    assert colour(panel, round(width * scale), round(height * 0.75 * scale)) == TILE
    assert colour(panel, round(width * scale / 2) + 1, round(height * 0.9 * scale)) == TILE


def test_boxes_refer_to_the_source_where_it_was_decoded_at_a_reduced_scale() -> None:
    answer = replace(ANSWER, tiles=(), boxes=(LabelledBox("", (2400, 0, 4800, 1600)),))
    panel = source_panel(plain(600, 400), (4800, 3200), answer)
    assert panel.size == (1402, 935)
    assert colour(panel, 702, 200) == BOX


def test_tiles_are_numbered_in_reading_order() -> None:
    tiles = tuple(Tile(120 * i, 200, 120 * i + 112, 312, 1.0) for i in range(3))
    panel = source_panel(plain(600, 400), (600, 400), replace(ANSWER, tiles=tiles, boxes=()))
    badges = [panel.crop((120 * i + 1, 179, 120 * i + 1 + 15, 200)) for i in range(3)]
    alone = [Image.new("RGB", (15, 21), TILE) for _ in range(3)]
    for number, image in enumerate(alone, start=1):
        Letters(str(number), 17).draw(ImageDraw.Draw(image), (5, 0), PAPER)
    assert [np.asarray(b).tobytes() for b in badges] == [np.asarray(a).tobytes() for a in alone]


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (599, 399, 600, 400), (5, 5, 6, 400), (-50, -50, 900, 900)])
def test_boxes_without_area_or_beyond_the_image_are_drawn_without_an_error(box: tuple[int, int, int, int]) -> None:
    answer = replace(ANSWER, boxes=(LabelledBox("a long label " * 20, box),), tiles=(Tile(*box, 0.0),))
    assert source_panel(plain(600, 400), (600, 400), answer).size == (602, 402)


def side_and_patch() -> tuple[int, int]:
    return 336, 42  # 3 times 112 px, in 8 patches


def is_border(image: Image.Image, x: int, y: int) -> bool:
    r, g, b = colour(image, x, y)[:3]
    return g > r + 60 and g > b + 10


def test_borders_stand_only_between_patches_of_different_tokens() -> None:
    side, patch = side_and_patch()
    owner = np.arange(64).reshape(8, 8)
    owner[2:4, 2:4] = owner[2, 2]
    image = token_map(plain(112, 112), owner)
    assert image.size == (side, side)
    middle = patch // 2
    for row in range(8):
        for col in range(1, 8):
            y = row * patch + middle
            found = any(is_border(image, x, y) for x in range(col * patch - 2, col * patch + 3))
            assert found == (owner[row, col] != owner[row, col - 1]), (row, col)
            found = any(is_border(image, y, x) for x in range(col * patch - 2, col * patch + 3))
            assert found == (owner[col, row] != owner[col - 1, row]), (col, row)


def test_merged_patches_are_tinted_and_single_ones_are_as_in_the_image() -> None:
    _, patch = side_and_patch()
    owner = np.arange(64).reshape(8, 8)
    owner[0, :2] = 0
    image = token_map(plain(112, 112), owner)
    assert colour(image, patch // 2, patch // 2) == colour(image, patch + patch // 2, patch // 2) != (GREY,) * 3
    assert colour(image, 2 * patch + patch // 2, patch // 2) == (GREY,) * 3


def test_dropped_patches_are_grey_with_dark_lines() -> None:
    _, patch = side_and_patch()
    owner = np.full((8, 8), -1)
    owner[0, 0] = 0
    pixels = np.asarray(token_map(plain(112, 112), owner)).astype(int)
    dropped = pixels[4 * patch + 4 : 5 * patch - 4, 4 * patch + 4 : 5 * patch - 4]
    assert dropped.max() < GREY
    assert np.ptp(dropped) > 40
    kept = pixels[4 : patch - 4, 4 : patch - 4]
    assert (kept == GREY).all()


@pytest.mark.parametrize("view_px", [14, 112, 336, 896])
@pytest.mark.parametrize("grid", [(1, 1), (8, 8), (24, 24), (64, 64), (3, 5)])
def test_every_geometry_has_a_legible_grid(view_px: int, grid: tuple[int, int]) -> None:
    image = token_map(plain(view_px, view_px), np.arange(grid[0] * grid[1]).reshape(grid))
    assert image.width == image.height <= 520
    assert image.width // max(grid) >= view_panels.LEAST_PATCH_PX


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("size", [(600, 448), (3000, 300), (300, 3000), (60, 40), (2, 1), (1, 2000)])
def test_any_shape_and_number_of_tiles(tmp_path: Path, size: tuple[int, int], count: int) -> None:
    tiles = tuple(Tile(0, 0, min(112, size[0]), min(112, size[1]), 1.0) for _ in range(count))
    answer = replace(ANSWER, tiles=tiles, members=(EVERY_TOKEN,) * (1 + count))
    image = draw(plain(*size), answer, tmp_path / "out.png")
    assert picture.LEAST_WIDTH_PX <= image.width <= 4000
    assert image.height <= 3500


def test_views_go_below_a_wide_source_and_beside_others() -> None:
    assert choose_layout((1400, 140), (336, 360), 7).below
    assert not choose_layout((1000, 1400), (336, 360), 7).below
    assert not choose_layout((600, 448), (336, 360), 1).below


def test_an_answer_without_members_shows_its_views_without_tokens() -> None:
    page = compose(plain(600, 400), (600, 400), replace(ANSWER, members=()), geometry=GEOMETRY, question="q")
    assert not any(is_border(page, x, page.height - 60) for x in range(page.width))


def test_long_words_and_long_texts_wrap_inside_the_page() -> None:
    for text in ["word " * 500, "x" * 3000, "a\nb\n\nc" * 50, "", "\x00\x1b[31m\t"]:
        lines = wrap(text, 21, 400, max_lines=8)
        assert 1 <= len(lines) <= 8
        assert all(line.width <= 401 for line in lines)
    assert lines[0].text == "[31m"
    assert wrap("x" * 3000, 21, 400, max_lines=8)[-1].text.endswith("...")
    assert shortened("a label that is long", 17, 60).width <= 61


def test_nothing_is_lost_when_a_text_wraps() -> None:
    text = " ".join(str(n) for n in range(100))
    joined = " ".join(line.text for line in wrap(text, 21, 300, max_lines=99))
    assert joined == text


def test_a_narrow_page_still_holds_all_letters() -> None:
    assert "".join(line.text for line in wrap("abc", 21, 1, max_lines=9)) == "abc"


def test_the_strip_grows_with_the_text(tmp_path: Path) -> None:
    short = draw(plain(600, 400), ANSWER, tmp_path / "a.png", "why?")
    long = draw(plain(600, 400), ANSWER, tmp_path / "b.png", "why? " * 60)
    assert long.height > short.height
    assert long.width == short.width


def test_a_page_holds_everything_and_escapes_what_it_quotes(tmp_path: Path) -> None:
    path = tmp_path / "seen.html"
    answer = replace(ANSWER, text="</pre><script>alert(1)</script>", bundle="<i>nano</i>")
    explain_answer(plain(600, 400), answer, path, geometry=GEOMETRY, question='is <b>a</b> & "b"?')
    text = path.read_text("utf-8")
    assert "<script" not in text
    assert "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "is &lt;b&gt;a&lt;/b&gt; &amp; &quot;b&quot;?" in text
    assert "<i>" not in text
    for expected in ("300, 100, 412, 212", "0.75", "30, 300, 130, 380", "12.2", "128", "100", "300 MiB"):
        assert expected in text, expected
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', text) == []
    data = re.search(r'base64,([^"]+)"', text)
    assert data
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as image:
        assert image.format == "PNG"


def test_a_page_takes_what_no_encoding_takes(tmp_path: Path) -> None:
    explain_answer(plain(600, 400), ANSWER, tmp_path / "seen.html", geometry=GEOMETRY, question="\udcff?")
    assert "<pre>??</pre>" in (tmp_path / "seen.html").read_text("utf-8")


def test_encoded_files_and_bytes_are_drawn_as_well(tmp_path: Path) -> None:
    source = tmp_path / "in.jpg"
    Image.fromarray(plain(2400, 1600)).save(source)
    for answer in (ANSWER, replace(ANSWER, tiles=(), members=(EVERY_TOKEN,))):
        for image in (str(source), source, source.read_bytes()):
            explain_answer(image, answer, tmp_path / "out.PNG", geometry=GEOMETRY, question="q")
            with Image.open(tmp_path / "out.PNG") as written:
                assert written.width > 1400


@pytest.mark.parametrize("name", ["seen.jpg", "seen", "-", ".png", "seen.png/", "missing/seen.png"])
def test_a_target_that_cannot_be_written_is_refused_with_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / "seen.png").mkdir()
    with pytest.raises(BadInput) as caught:
        check_target(tmp_path / name)
    assert caught.value.remedy


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(BadInput, match="nothing can be written"):
        check_target(tmp_path / "seen.png")


def test_the_image_itself_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "page.png"
    Image.fromarray(plain(60, 40)).save(source)
    (tmp_path / "link.png").symlink_to(source)
    before = source.read_bytes()
    for target in (source, tmp_path / "link.png", tmp_path / ".." / tmp_path.name / "page.png"):
        with pytest.raises(BadInput, match="overwrite"):
            check_target(target, [b"other", "-", str(source)])
        with pytest.raises(BadInput, match="overwrite"):
            explain_answer(str(source), ANSWER, target, geometry=GEOMETRY, question="q")
    assert source.read_bytes() == before


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "seen.png"
    target.write_text("old")
    with pytest.raises(BadImage):
        explain_answer(b"no image", ANSWER, target, geometry=GEOMETRY, question="q")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        explain_answer(plain(600, 400), ANSWER, target, geometry=GEOMETRY, question="q")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_picture_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "seen.png"
    target.write_text("old")
    assert draw(plain(600, 400), ANSWER, target).format == "PNG"


def quarters(width: int, height: int) -> np.ndarray:
    """A picture of four plain quarters: red, green / blue, white."""
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[: height // 2, : width // 2] = (255, 0, 0)
    picture[: height // 2, width // 2 :] = (0, 255, 0)
    picture[height // 2 :, : width // 2] = (0, 0, 255)
    return picture


def middle(panel: Image.Image) -> tuple[int, ...]:
    """The colour in the middle of a panel's picture, below its title."""
    return colour(panel, panel.width // 2, (panel.height + view_panels.TITLE_PX) // 2)


def test_views_that_a_family_cut_are_drawn_in_its_order_and_padding_is_left_out() -> None:
    own = ((200, 0, 400, 100), (0, 100, 200, 200), (400, 200, 400, 200), (0, 0, 400, 200))
    tiles = tuple(Tile(*box, 0.0) for box in own[:2])
    answer = replace(ANSWER, tiles=tiles, boxes=(), members=(), views=own)
    panels = view_panels.view_panels(quarters(400, 200), answer, GEOMETRY)
    assert len(panels) == 3
    assert [middle(panel) for panel in panels[:2]] == [(0, 255, 0), (0, 0, 255)]
    whole = panels[2]
    corner = colour(whole, 10, view_panels.TITLE_PX + 10), colour(whole, whole.width - 10, whole.height - 10)
    assert corner == ((255, 0, 0), (255, 255, 255))


def test_views_with_a_grid_of_tokens_show_it() -> None:
    """The second view is the image alone; of the first one's 64 tokens two are left."""
    merged = (0,) * 32 + (1,) * 32
    answer = replace(
        ANSWER,
        tiles=(Tile(0, 0, 200, 200, 0.0),),
        members=(merged, EVERY_TOKEN),
        views=((0, 0, 200, 200), (0, 0, 400, 200)),
    )
    first, second = view_panels.view_panels(plain(400, 200), answer, GEOMETRY)
    inside = first.crop((5, view_panels.TITLE_PX + 5, first.width - 5, first.height - 5))
    rows = {y for x, y in np.ndindex(inside.size) if colour(inside, x, y)[0] < 120}
    assert len(rows) <= 4, "one line between the two halves"
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize("size", [(300, 100), (100, 300), (900, 3)])
def test_a_view_of_any_proportions_keeps_them(size: tuple[int, int]) -> None:
    geometry = PatchGeometry(448, (16, 16), patch_px=14, merge=2, min_pixels=3136, max_pixels=12_845_056)
    answer = replace(ANSWER, tiles=(), boxes=(), members=(), views=((0, 0, *size),))
    (panel,) = view_panels.view_panels(plain(*size), answer, geometry)
    shown = panel.height - view_panels.TITLE_PX
    assert max(shown, round(shown * size[0] / size[1])) == pytest.approx(view_panels.MOST_PX, rel=0.35)


def test_an_image_decoded_at_a_reduced_scale_is_shown_whole() -> None:
    answer = replace(ANSWER, tiles=(), boxes=(), members=(), views=((0, 0, 4000, 2000),))
    (panel,) = view_panels.view_panels(quarters(400, 200), answer, GEOMETRY)
    assert colour(panel, 10, view_panels.TITLE_PX + 10) == (255, 0, 0)
