"""Grids of pictures: contact sheets, pairs, before and after, mistakes.

A sheet is one drawn picture with text at its tiles, not an Axes per tile: 200 tiles
take a tenth of a second instead of ten. Tiles have one size, keep the aspect ratio
and stand on white. Class activation maps lie under the ink, as a marker pen would.
Limits: captions are cut to the width of their tile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from sketchlib.analysis import plots

_TILE_PX = 192  # sharp at 1.15 inches and 120 dpi, also when a browser zooms
_GAP_PX = 14
_LINE_PX = 25  # height of one caption line
_INCH_PX = 165.0  # sheet pixels shown per inch
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
    texts: list[_Text] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paper = np.full((self.height, self.width, 3), 255, np.uint8)

    def put(self, picture: np.ndarray, x: int, y: int) -> None:
        """Fit a picture into the tile whose upper left corner is at (x, y)."""
        self.paper[y : y + _TILE_PX, x : x + _TILE_PX] = fit_tile(picture, _TILE_PX)
        corner = (x + _TILE_PX - 1, y + _TILE_PX - 1)
        cv2.rectangle(self.paper, (x, y), corner, (_FRAME,) * 3, 1)

    def draw(self, title: str) -> Figure:
        size = (self.width / _INCH_PX, self.height / _INCH_PX + 0.4 * bool(title))
        figure = plt.figure(figsize=size, layout="none")
        share = self.height / _INCH_PX / size[1]
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

    Paper takes the colour of the map, ink stays as it is; the paper is the level
    that the picture's edge has most, so dark paper works as well.

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
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY).astype(np.float32)
    depth = np.abs(grey - _paper_level(grey))
    ink = np.clip(depth / max(float(depth.max()), 1.0), 0, 1)[..., None]
    drawn = colour / 255
    if _paper_level(grey) < 128:  # light ink would vanish on light paint
        drawn = 1 - drawn
    return np.rint(255 * (ink * drawn + (1 - ink) * paint)).astype(np.uint8)


def _paper_level(grey: np.ndarray) -> float:
    """The commonest grey level along the four edges, 0-255."""
    edge = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return float(np.bincount(edge.astype(np.int64), minlength=256).argmax())


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
    step_y = _TILE_PX + lines * _LINE_PX + _GAP_PX
    rows = -(-len(pictures) // columns)
    sheet = _Sheet(_GAP_PX + columns * (_TILE_PX + _GAP_PX), rows * step_y)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x = _GAP_PX + place % columns * (_TILE_PX + _GAP_PX)
        y = place // columns * step_y
        sheet.put(picture, x, y)
        _write_lines(sheet, x, y + _TILE_PX + 4, caption)
    return sheet.draw(title)


def _write_lines(sheet: _Sheet, x: int, y: int, caption: str) -> None:
    """Caption lines below a tile, each cut to its width, the first in ink."""
    for number, line in enumerate(caption.split("\n")):
        colour = plots.INK if number == 0 else plots.GREY
        text = plots.shorten(line, 22)
        sheet.texts.append(_Text(x, y + number * _LINE_PX, text, colour))


def plot_class_sheet(
    pictures: Mapping[str, Sequence[np.ndarray]],
    *,
    each: int = 10,
    title: str = "Classes",
) -> Figure:
    """One row of pictures per class, its name and colour on the left.

    Args:
        pictures: up to `each` are shown per class name, in the mapping's order.
        each: pictures in a row.
        title: names the subject.
    """
    label_px = 230
    step = _TILE_PX + _GAP_PX
    sheet = _Sheet(label_px + each * step, max(1, len(pictures)) * step)
    colours = plots.class_colours(list(pictures))
    for row, (name, tiles) in enumerate(pictures.items()):
        y = row * step
        sheet.paper[y : y + _TILE_PX, _GAP_PX : _GAP_PX + 6] = _rgb(colours[name])
        text, middle = plots.shorten(name, 22), y + _TILE_PX / 2
        sheet.texts.append(_Text(_GAP_PX + 16, middle, text, size=8.5, align="center"))
        for column, picture in enumerate(tiles[:each]):
            sheet.put(picture, label_px + column * step, y)
    return sheet.draw(title)


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
    step_x, step_y = 2 * _TILE_PX + 4 * _GAP_PX, _TILE_PX + 3 * _LINE_PX + _GAP_PX
    rows = max(1, -(-len(pairs) // columns))
    sheet = _Sheet(columns * step_x, rows * step_y)
    for place, pair in enumerate(pairs.to_dict("records")):
        x = _GAP_PX + place % columns * step_x
        y = place // columns * step_y
        for side, name in enumerate((pair["image_id_a"], pair["image_id_b"])):
            left = x + side * (_TILE_PX + 4)
            sheet.put(pictures[name], left, y)
            text, below = plots.shorten(name, 22), y + _TILE_PX + 4
            sheet.texts.append(_Text(left, below + _LINE_PX, text, plots.GREY))
        score = f", {pair['score']:.2f}" if "score" in pair else ""
        text = f"{pair['kind']}{score}"
        sheet.texts.append(_Text(x, y + _TILE_PX + 4, text, plots.WARM))
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
    label_px, step = 190, _TILE_PX + _GAP_PX
    most = max((len(tiles) for tiles in draws.values()), default=0)
    wide_gap = 2 * _GAP_PX
    sheet = _Sheet(label_px + (most + 1) * step + wide_gap, max(1, len(draws)) * step)
    for row, (name, tiles) in enumerate(draws.items()):
        text, middle = plots.shorten(name, 20), row * step + _TILE_PX / 2
        sheet.texts.append(_Text(_GAP_PX, middle, text, size=8.5, align="center"))
        sheet.put(original, label_px, row * step)
        for column, picture in enumerate(tiles, 1):
            sheet.put(picture, label_px + column * step + wide_gap, row * step)
    return sheet.draw(title)


def plot_mistakes(
    pictures: Sequence[np.ndarray],
    table: pd.DataFrame,
    *,
    cams: Sequence[np.ndarray] | np.ndarray | None = None,
    columns: int = 8,
    title: str = "Most confident mistakes",
) -> Figure:
    """Pictures with true → predicted and the probability; attention beside them.

    Args:
        pictures: uint8, in the order of `table`.
        table: rows of `scores.per_picture`: image_id, class_name, predicted,
            probability (0-1).
        cams: (h, w) maps in 0-1 for each picture, drawn under its ink as a second
            tile; None shows the pictures alone.
        columns: tiles in a row; a picture and its map take two.
        title: names the subject.
    """
    captions = [
        f"{name} → {predicted}\n{probability:.2f} · {image_id.split('/')[-1]}"
        for image_id, name, predicted, probability in table[
            ["image_id", "class_name", "predicted", "probability"]
        ].itertuples(index=False)
    ]
    if cams is None:
        return plot_grid(pictures, captions, columns=columns, title=title)
    tiles, texts = [], []
    for picture, cam, caption in zip(pictures, cams, captions, strict=True):
        tiles += [picture, lay_cam(picture, cam)]
        texts += [caption, "looked at"]
    return plot_grid(tiles, texts, columns=2 * max(1, columns // 2), title=title)
