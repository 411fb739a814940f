"""What a recipe does to drawings, measured and ready to be looked at.

The draws are those of training: same cache, same recipe, same seeds. Limits: ink is
the mean darkness, which faint paper texture changes too.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sketchlib.data import cache, images
from sketchlib.training import transforms

GEOMETRIES = {
    "stretch": ("stretch", "keep"),
    "pad": ("pad", "keep"),
    "ink": ("ink", "keep"),
    "ink, white paper": ("ink", "white"),
}
_BLANK = 0.1  # share of the ink below which a drawing counts as gone


def choose_rows(pixels: cache.PixelCache, count: int, seed: int) -> np.ndarray:
    """Up to `count` row numbers of readable pictures that are not blank."""
    usable = np.flatnonzero(pixels.readable)
    order = np.random.default_rng(seed).permutation(usable)
    inked = [row for row in order[: 2 * count] if np.ptp(pixels.pixels[row]) > 40]
    return np.array(inked[:count], np.int64)


def draw_many(
    pixels: cache.PixelCache, row: int, name: str, draws: int, seed: int
) -> list[np.ndarray]:
    """The picture of `row` as `draws` successive epochs see it, uint8."""
    recipe = transforms.make_recipe(name)
    picture = np.array(pixels.pixels[row])
    return [
        np.array(transforms.draw(recipe, picture, seed, epoch, int(row)))
        for epoch in range(draws)
    ]


def measure_ink(
    pixels: cache.PixelCache, rows: np.ndarray, name: str, seed: int
) -> dict[str, object]:
    """Ink after one draw of each row, over the ink before.

    Returns:
        recipe; median_ink, low_ink, high_ink (5th and 95th percentile); gone_blank
        (share of draws that kept under a tenth, 0-1); milliseconds per picture.
    """
    recipe = transforms.make_recipe(name)
    pictures = [np.array(pixels.pixels[row]) for row in rows]
    started = time.perf_counter()
    drawn = [
        transforms.draw(recipe, picture, seed, 0, int(row))
        for picture, row in zip(pictures, rows, strict=True)
    ]
    seconds = time.perf_counter() - started
    change = np.array(
        [transforms.ink_change(a, b) for a, b in zip(pictures, drawn, strict=True)]
    )
    low, median, high = np.quantile(change, [0.05, 0.5, 0.95])
    return {
        "recipe": name,
        "median_ink": median,
        "low_ink": low,
        "high_ink": high,
        "gone_blank": float((change < _BLANK).mean()),
        "milliseconds": 1e3 * seconds / len(rows),
    }


def compare_geometries(
    manifest: pd.DataFrame, data_dir: Path, rows: Sequence[int], side_px: int
) -> list[np.ndarray]:
    """The same pictures under each of `GEOMETRIES`, one geometry after the other."""
    raw = [
        images.read_picture(images.picture_path(data_dir, manifest["path"].iloc[row]))
        for row in rows
    ]
    return [
        cache.fit_picture(picture, cache.Geometry(side_px, fit, "grey", paper))
        for fit, paper in GEOMETRIES.values()
        for picture in raw
    ]
