"""Which pictures to show: a few of each class, flag or pair, always the same ones.

Figures of a whole data set are samples; these are seeded, so that a report can be
compared with the next. Limits: nothing is drawn here, see `sheets`.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib.data import audit, cache, images

TILE_PX = 160  # longest side kept of a picture that is only looked at


def sample_classes(
    manifest: pd.DataFrame,
    pixels: cache.PixelCache,
    names: Sequence[str],
    *,
    each: int,
    seed: int,
) -> dict[str, list[np.ndarray]]:
    """Up to `each` cached training pictures of every class in `names`."""
    train = manifest[manifest["subset"] == "train"]
    chosen = {}
    for name in names:
        ids = train.loc[train["class_name"] == name, "image_id"]
        ids = ids.sample(min(each, len(ids)), random_state=seed)
        chosen[name] = [np.array(pixels.pixels[row]) for row in pixels.rows(ids)]
    return chosen


def sample_flags(
    findings: pd.DataFrame, data_dir: Path, *, each: int
) -> tuple[list[np.ndarray], list[str]]:
    """(pictures, captions): the first `each` readable pictures behind each flag."""
    shown, captions = [], []
    for flag in audit.FLAGS:
        hits = findings[audit.flagged(findings, flag) & findings["readable"]]
        for image_id in hits["image_id"].head(each):
            shown.append(read_small(data_dir, image_id))
            captions.append(f"{flag.replace('_', ' ')}\n{image_id}")
    return shown, captions


def sample_extremes(
    manifest: pd.DataFrame, pixels: cache.PixelCache, scores: np.ndarray, *, each: int
) -> tuple[list[np.ndarray], list[str]]:
    """(pictures, captions): lowest training scores, then highest test scores."""
    ranked = manifest.assign(score=scores).sort_values("score", kind="stable")
    low = ranked[ranked["subset"] == "train"].head(each)
    high = ranked[ranked["subset"] == "test"].tail(each)[::-1]
    shown, captions = [], []
    for row in pd.concat([low, high]).itertuples():
        (place,) = pixels.rows(pd.Series([row.image_id]))
        shown.append(np.array(pixels.pixels[place]))
        captions.append(f"{row.class_name or 'test'}\n{row.image_id}")
    return shown, captions


def read_ids(data_dir: Path, image_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Small colour pictures by id, as they are in the files; unreadable ones white."""
    return {image_id: read_small(data_dir, image_id) for image_id in image_ids}


def read_small(data_dir: Path, image_id: str) -> np.ndarray:
    """(h, w, 3) uint8, the longer side at most 160 px; white where unreadable."""
    try:
        path = images.picture_path(data_dir, image_id)
        pixels = images.read_picture(path, "colour")
    except images.PictureError:
        return np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
    scale = min(1.0, TILE_PX / max(pixels.shape[:2]))
    size = (
        max(1, round(pixels.shape[1] * scale)),
        max(1, round(pixels.shape[0] * scale)),
    )
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
