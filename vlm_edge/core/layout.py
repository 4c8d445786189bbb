"""How one image is cut into views, and which of its tiles are shown."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_edge.errors import BadInput

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Cell = tuple[int, int]


@dataclass(frozen=True)
class ImageLayout:
    """How one image is cut into views, and what they cost in the prompt.

    canvas_px: size that the image is brought to before tiles are cut from it; for views of several sizes, the largest.
    content: box of the image on the canvas; smaller than the canvas where the family pads.
    rows, cols: tiles on the canvas; 0 where it is shown in one piece.
    views: pictures that the encoder sees, the view of the whole image included.
    token_grid: rows and columns of the visual tokens that stand for the canvas: after unpadding, newlines not counted
    (AnyRes), or after merging patches (Qwen-VL); (0, 0) where each view keeps a grid of its own.
    grid_thw: frames, rows and columns of patches before merging (Qwen-VL).
    cells: (row, column) of the tiles that are shown, row by row; None where all of them are.
    marker_tokens: text tokens that the family puts around the views; visual_tokens does not count them.
    cell_tokens: rows and columns of tokens in a tile of token_grid, where tiles are no views of their own (Qwen-VL).
    parts: layouts of an image's runs, where they differ: the image as a whole, and cells of it at full size (Qwen-VL).
    """

    canvas_px: Size
    content: Box
    views: int
    visual_tokens: int
    marker_tokens: int = 0
    rows: int = 0
    cols: int = 0
    token_grid: tuple[int, int] = (0, 0)
    grid_thw: tuple[int, int, int] | None = None
    cells: tuple[Cell, ...] | None = None
    cell_tokens: tuple[int, int] = (0, 0)
    parts: tuple[ImageLayout, ...] = ()

    @property
    def positions(self) -> int:
        """What the image takes of the prompt: visual tokens and markers."""
        return self.visual_tokens + self.marker_tokens

    @property
    def shown_cells(self) -> tuple[Cell, ...]:
        """(row, column) of every tile that is shown, row by row."""
        if self.cells is not None:
            return self.cells
        return tuple((row, col) for row in range(self.rows) for col in range(self.cols))

    def of_run(self, number: int) -> ImageLayout:
        """The layout of one of the image's runs of embeddings."""
        return self.parts[number] if self.parts else self


def require_pixels(image_px: Size) -> Size:
    """(width, height) as given; raises BadInput unless both are at least 1."""
    if min(image_px) < 1:
        raise BadInput(f"an image of {image_px[0]}x{image_px[1]} px has no pixels", remedy="give an image with pixels")
    return image_px


def distinct_rows(cells: tuple[Cell, ...]) -> int:
    """Rows of tiles that hold any of the cells."""
    return len({row for row, _ in cells})
