"""Grids of pictures: contact sheets, pairs, before and after, mistakes.

A sheet is one drawn picture with text at its tiles, not an Axes per tile: 200 tiles
take a tenth of a second instead of ten. Tiles have one size, keep the aspect ratio
and stand on white. Class activation maps lie under the ink, as a marker pen would.
Limits: captions are cut to the width of their tile.
"""

import textwrap
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sketchlib.analysis import plots
from sketchlib.data import cache

_TILE_PX = 192  # sharp at 1.15 inches and 120 dpi, also when a browser zooms
_GAP_PX = 14
_INCH_PX = 165.0  # sheet pixels shown per inch, more on sheets wider than a notebook
_LINE = 0.152  # inches, height of a caption line
_LETTER = 0.058  # inches, mean width of a letter of a caption
_NAME = 1.35  # inches, room for the name of a row
_FRAME = 226  # grey level of the line around a tile


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    colour: str = plots.INK
    size: float = 7.5  # points
    align: str = "top"  # or "center", of y


@dataclass
class _Sheet:
    """White paper that tiles and texts are put on, in sheet pixels."""

    width: int
    height: int
    unit: float  # sheet pixels per inch
    texts: list[_Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paper = np.full((self.height, self.width, 3), 255, np.uint8)

    def write(
        self, x: float, y: float, line: str, colour: str = plots.INK, *, tiles: int = 1
    ) -> None:
        """A caption line at (x, y), cut to the width of its tiles."""
        letters = int(tiles * _TILE_PX / self.unit / _LETTER)
        self.texts.append(_Text(x, y, plots.shorten(line, letters), colour))

    def put(self, picture: np.ndarray, x: int, y: int) -> None:
        """Fit a picture into the tile whose upper left corner is at (x, y)."""
        self.paper[y : y + _TILE_PX, x : x + _TILE_PX] = fit_tile(picture, _TILE_PX)
        corner = (x + _TILE_PX - 1, y + _TILE_PX - 1)
        cv2.rectangle(self.paper, (x, y), corner, (_FRAME,) * 3, 1)

    def draw(self, title: str) -> Figure:
        """The paper with its texts as one figure."""
        size = (self.width / self.unit, self.height / self.unit + 0.4 * bool(title))
        figure = plt.figure(figsize=size, layout="none")
        share = self.height / self.unit / size[1]
        ax = figure.add_axes((0, 0, 1, share))
        ax.imshow(self.paper, interpolation="antialiased")
        ax.set_axis_off()
        for one in self.texts:
            style = {"color": one.colour, "fontsize": one.size, "va": one.align}
            ax.text(one.x, one.y, one.text, style)
        if title:
            figure.text(
                _GAP_PX / self.width,
                1 - 0.1 / size[1],
                title,
                fontsize=11,
                fontweight="bold",
                va="top",
            )
        return figure


def _find_unit(tiles_px: int, label_inches: float = 0.0) -> float:
    """Sheet pixels per inch at which tiles and row names fit a notebook's width."""
    return max(_INCH_PX, tiles_px / (plots.WIDTH - label_inches))


def fit_tile(picture: np.ndarray, side_px: int) -> np.ndarray:
    """(side, side, 3) uint8: the picture whole, centred on white.

    Args:
        picture: (H, W) or (H, W, 1 or 3) uint8, 0 black to 255 white.
        side_px: of the tile.
    """
    colour = _as_colour(picture)
    height, width = colour.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(colour, size, interpolation=method)
    tile = np.full((side_px, side_px, 3), 255, np.uint8)
    top, left = (side_px - size[1]) // 2, (side_px - size[0]) // 2
    tile[top : top + size[1], left : left + size[0]] = small
    return tile


def _as_colour(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8; raises ValueError for anything that is not a picture."""
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or not picture.size:
        raise ValueError(
            "a picture should be uint8 (H, W) or (H, W, 3), but "
            f"{picture.dtype} {picture.shape} came; undo the normalisation first"
        )
    if picture.ndim == 2:
        picture = picture[..., None]
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def lay_cam(picture: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """The picture with a class activation map under its ink.

    Paper takes the colour of the map, ink stays as it is; a drawing on dark paper is
    turned first.

    Args:
        picture: (H, W) or (H, W, 3) uint8.
        cam: (h, w) float, 0-1, resized to the picture.
    Returns:
        (H, W, 3) uint8, RGB.
    """
    colour = _as_colour(picture)
    height, width = colour.shape[:2]
    heat = cv2.resize(cam.astype(np.float32), (width, height))
    paint = plots.HEAT(np.clip(heat, 0, 1))[..., :3]  # (H, W, 3)
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    paper = cache.ground_level(grey)
    depth = np.abs(grey.astype(np.float32) - paper)
    ink = np.clip(depth / max(float(depth.max()), 1.0), 0, 1)[..., None]
    drawn = colour / 255
    if paper < cache.DARK_GROUND:  # light ink would vanish on light paint
        drawn = 1 - drawn
    return np.rint(255 * (ink * drawn + (1 - ink) * paint)).astype(np.uint8)


def plot_grid(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int = 8,
    title: str = "",
) -> Figure:
    """Pictures row by row, each with a caption of one or more lines.

    Args:
        pictures: uint8 (H, W) or (H, W, 3), any sizes.
        captions: one per picture; newlines split lines.
        columns: tiles in a row.
        title: names the subject.
    Raises:
        ValueError: no picture, or not one caption for each.
    """
    if not len(pictures) or len(pictures) != len(captions):
        raise ValueError(
            f"a grid should have at least one picture and a caption for each, but "
            f"{len(pictures)} pictures and {len(captions)} captions came"
        )
    columns = min(columns, len(pictures))
    lines = max(caption.count("\n") + 1 for caption in captions)
    width = _GAP_PX + columns * (_TILE_PX + _GAP_PX)
    unit = _find_unit(width)
    line_px = round(_LINE * unit)
    step_y = _TILE_PX + lines * line_px + _GAP_PX
    sheet = _Sheet(width, -(-len(pictures) // columns) * step_y, unit)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _GAP_PX + place % columns * (_TILE_PX + _GAP_PX)
        y = place // columns * step_y
        sheet.put(picture, x, y)
        for number, line in enumerate(caption.split("\n")):
            colour = plots.GREY if number else plots.INK
            if line.startswith("→"):  # where the picture was sent
                colour = plots.WARM
            sheet.write(x, y + _TILE_PX + 4 + number * line_px, line, colour)
    return sheet.draw(title)


def plot_class_sheet(
    pictures: Mapping[str, Sequence[np.ndarray]],
    *,
    each: int = 10,
    classes: Sequence[str] | None = None,
    title: str = "Classes",
) -> Figure:
    """One row of pictures per class, its name and colour on the left.

    Args:
        pictures: up to `each` are shown per class name, in the mapping's order.
        each: pictures in a row.
        classes: all classes, when only some are shown: keeps their colours.
        title: names the subject.
    """
    step = _TILE_PX + _GAP_PX
    unit = _find_unit(each * step, _NAME)
    left = round(_NAME * unit)
    sheet = _Sheet(left + each * step, max(1, len(pictures)) * step, unit)
    colours = plots.class_colours(classes or list(pictures))
    for row, (name, tiles) in enumerate(pictures.items()):
        y = row * step
        sheet.paper[y : y + _TILE_PX, _GAP_PX : _GAP_PX + 6] = _rgb(colours[name])
        _write_name(sheet, name, row)
        for column, picture in enumerate(tiles[:each]):
            sheet.put(picture, left + column * step, y)
    return sheet.draw(title)


def _write_name(sheet: _Sheet, name: str, row: int) -> None:
    """The name of a row of tiles, at its left, in two lines if need be."""
    y = row * (_TILE_PX + _GAP_PX) + _TILE_PX / 2
    text = "\n".join(textwrap.wrap(plots.shorten(name, 34), 19))
    sheet.texts.append(_Text(_GAP_PX + 16, y, text, size=8.5, align="center"))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def plot_pairs(
    pairs: pd.DataFrame,
    pictures: Mapping[str, np.ndarray],
    *,
    columns: int = 3,
    title: str = "Duplicate pairs",
) -> Figure:
    """Two pictures side by side with how they are related.

    Args:
        pairs: image_id_a, image_id_b, kind (e.g. `exact`, `near, hflip`); an optional
            score (0-1) is shown behind the kind.
        pictures: uint8 by `image_id`.
        columns: pairs in a row.
        title: names the subject.
    """
    columns = max(1, min(columns, len(pairs)))
    step_x = 2 * _TILE_PX + 3 * _GAP_PX
    unit = _find_unit(columns * step_x)
    line_px = round(_LINE * unit)
    step_y = _TILE_PX + 2 * line_px + 2 * _GAP_PX
    sheet = _Sheet(columns * step_x, max(1, -(-len(pairs) // columns)) * step_y, unit)
    for place, pair in enumerate(pairs.to_dict("records")):
        x, y = _GAP_PX + place % columns * step_x, place // columns * step_y
        below = y + _TILE_PX + 4
        for side, name in enumerate((pair["image_id_a"], pair["image_id_b"])):
            left = x + side * (_TILE_PX + 4)
            sheet.put(pictures[name], left, y)
            sheet.write(left, below + line_px, name, plots.GREY)
        score = f", {pair['score']:.2f}" if "score" in pair else ""
        sheet.write(x, below, f"{pair['kind']}{score}", plots.WARM, tiles=2)
    return sheet.draw(title)


def plot_augmented(
    original: np.ndarray,
    draws: Mapping[str, Sequence[np.ndarray]],
    *,
    title: str = "Recipes: the original, then draws",
) -> Figure:
    """The original beside random draws of each recipe, one recipe a row.

    Args:
        original: uint8 picture.
        draws: uint8 pictures by recipe name.
        title: names the subject.
    """
    step, wide_gap = _TILE_PX + _GAP_PX, 2 * _GAP_PX
    most = max((len(tiles) for tiles in draws.values()), default=0)
    tiles_px = (most + 1) * step + wide_gap
    unit = _find_unit(tiles_px, _NAME)
    left = round(_NAME * unit)
    sheet = _Sheet(left + tiles_px, max(1, len(draws)) * step, unit)
    for row, (name, tiles) in enumerate(draws.items()):
        _write_name(sheet, name, row)
        sheet.put(original, left, row * step)
        for column, picture in enumerate(tiles, 1):
            sheet.put(picture, left + column * step + wide_gap, row * step)
    return sheet.draw(title)


def plot_mistakes(
    pictures: Sequence[np.ndarray],
    table: pd.DataFrame,
    *,
    cams: np.ndarray | Mapping[str, np.ndarray] | None = None,
    columns: int = 8,
    title: str = "Most confident mistakes",
) -> Figure:
    """Pictures with true → predicted and the probability; attention beside them.

    Args:
        pictures: uint8, in the order of `table`.
        table: rows of `breakdown.per_picture`: image_id, class_name, predicted,
            probability (0-1).
        cams: (N, h, w) maps in 0-1, drawn under the ink as a second tile; several
            by name (true and predicted class, two models) make as many tiles; None
            shows the pictures alone.
        columns: tiles in a row; a picture and its maps stay together.
        title: names the subject.
    """
    maps = {} if cams is None else cams
    named = dict(maps) if isinstance(maps, Mapping) else {"looked at": maps}
    tiles, captions = [], []
    for row, (picture, mistake) in enumerate(
        zip(pictures, table.to_dict("records"), strict=True)
    ):
        tiles += [picture, *(lay_cam(picture, cam[row]) for cam in named.values())]
        captions += [_describe(mistake), *named]
    each = 1 + len(named)
    columns = each * max(1, columns // each)
    return plot_grid(tiles, captions, columns=columns, title=title)


def _describe(row: Mapping[Hashable, Any]) -> str:
    """True class, predicted class with its probability, file: a line each."""
    sign = "=" if row["predicted"] == row["class_name"] else "→"
    answer = f"{sign} {row['predicted']} {row['probability']:.2f}"
    return f"{row['class_name']}\n{answer}\n{str(row['image_id']).split('/')[-1]}"


def plot_suspects(
    suspects: pd.DataFrame,
    neighbours: pd.DataFrame,
    pictures: Mapping[str, np.ndarray],
    *,
    columns: int = 10,
    title: str = "Labels to doubt, with what they are like",
) -> Figure:
    """Each doubted picture beside its neighbours of the given and suggested class.

    Args:
        suspects: `labels.find_suspects`: image_id, given, suggested, score (0-1).
        neighbours: `labels.find_neighbours`: image_id, neighbour, class_name, side.
        pictures: uint8 by `image_id`.
        columns: tiles in a row; a suspect and its neighbours stay together.
        title: names the subject.
    """
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    each = 1 + int(
        neighbours["image_id"].value_counts().max() if len(neighbours) else 0
    )
    for suspect in suspects.to_dict("records"):
        near = neighbours[neighbours["image_id"] == suspect["image_id"]]
        tiles.append(pictures[suspect["image_id"]])
        captions.append(f"{suspect['given']}?\n→ {suspect['suggested']}")
        for one in near.to_dict("records"):
            tiles.append(pictures[one["neighbour"]])
            captions.append(f"{one['class_name']}\n{one['side']}")
        while len(tiles) % each:  # a class with too few pictures leaves tiles empty
            tiles.append(np.full((8, 8), 255, np.uint8))
            captions.append("")
    if not tiles:
        tiles, captions = [np.full((8, 8), 255, np.uint8)], ["nothing to doubt"]
    columns = each * max(1, columns // each)
    return plot_grid(tiles, captions, columns=columns, title=title)
