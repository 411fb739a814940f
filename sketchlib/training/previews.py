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
from sketchlib.training import recipes, steps, transforms

GEOMETRIES = {
    "stretch": ("stretch", "keep"),
    "pad": ("pad", "keep"),
    "crop": ("crop", "keep"),
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


def draw_strengths(
    pixels: cache.PixelCache, row: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Every single step on one picture, always applied: low, mid and high.

    The same stream at each strength, so that only the strength differs.
    """
    picture = np.array(pixels.pixels[row])
    made = {}
    for name in steps.KINDS:
        drawn = []
        for strength in ("low", "mid", "high"):
            recipe = transforms.Pipeline((make_step(name, strength),))
            drawn.append(np.array(transforms.draw(recipe, picture, seed, 0, int(row))))
        made[name] = drawn if steps.KINDS[name].dials else drawn[:1]
    return made


def make_step(name: str, strength: str) -> recipes.Step:
    """The step `name`, always applied, every dial at `low`, `mid` or `high`."""
    dials = steps.KINDS[name].dials
    args = {key: getattr(dial, strength) for key, dial in dials.items()}
    return recipes.parse_steps([{name: {**args, "p": 1}}], name)[0]


def mix_pictures(
    pixels: cache.PixelCache, rows: np.ndarray, seed: int
) -> dict[str, list[np.ndarray]]:
    """What mixup and CutMix (timm's, as in training) make of pairs of pictures.

    Row r is mixed with the row as far from the end; the count is made even.
    """
    import torch
    from timm.data import Mixup

    rows = rows[: len(rows) // 2 * 2]
    batch = np.stack([np.asarray(pixels.pixels[row]) for row in rows])
    planes = batch[:, None] if batch.ndim == 3 else batch.transpose(0, 3, 1, 2)
    made = {}
    before = np.random.get_state()  # timm draws from numpy's one stream
    for name, options in {
        "mixup": {"mixup_alpha": 1.0, "cutmix_alpha": 0.0},
        "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0},
    }.items():
        np.random.seed(seed)
        mix = Mixup(**options, mode="elem", label_smoothing=0.0, num_classes=2)
        inputs = torch.from_numpy(planes.astype(np.float32))
        mixed, _ = mix(inputs, torch.zeros(len(rows), dtype=torch.int64))
        found = mixed.round().clamp(0, 255).to(torch.uint8).numpy()
        made[name] = list(
            found[:, 0] if batch.ndim == 3 else found.transpose(0, 2, 3, 1)
        )
    np.random.set_state(before)
    return made


def measure_ink(
    pixels: cache.PixelCache, rows: np.ndarray, name: str, seed: int, limit: float
) -> dict[str, object]:
    """Ink after one draw of each row, over the ink before.

    Args:
        pixels: the cache.
        rows: pictures that are not blank; see `choose_rows`.
        name: recipe.
        seed: of the draws.
        limit: factor by which ink may grow or shrink, over 1.
    Returns:
        recipe; median_ink, low_ink, high_ink (5th and 95th percentile); gone_blank
        (pictures that kept under a tenth); over_limit (share of the pictures beyond
        `limit`, 0-1); milliseconds per picture; flag (empty, or what is wrong).
    """
    recipe = transforms.make_recipe(name)
    change, seconds = np.empty(len(rows)), 0.0
    last = max((step.from_epoch for step in recipe.steps), default=0)
    for number, row in enumerate(rows):
        picture = np.asarray(pixels.pixels[row])
        started = time.perf_counter()
        drawn = transforms.draw(recipe, picture, seed, last, int(row))
        seconds += time.perf_counter() - started
        change[number] = transforms.ink_change(picture, drawn)
    low, median, high = np.quantile(change, [0.05, 0.5, 0.95])
    over = float(((change > limit) | (change < 1 / limit)).mean())
    blank = int((change < _BLANK).sum())
    return {
        "recipe": name,
        "median_ink": median,
        "low_ink": low,
        "high_ink": high,
        "gone_blank": blank,
        "over_limit": over,
        "milliseconds": 1e3 * seconds / len(rows),
        "flag": "pictures gone blank" if blank else "ink" if over > 0.05 else "",
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
