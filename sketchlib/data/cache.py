"""Decoded, resized pixels as one memory-mapped array.

Decoding a JPEG costs more than augmenting it, so every picture is decoded once per
geometry and kept as uint8. The file is keyed by the pictures' names, sizes and
modification times and by the geometry; a changed picture makes a new file.
Limits: rewriting a file within its time stamp's resolution, at the same size, goes
unseen; delete the cache folder then.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import images

FITS = ("stretch", "pad", "ink")
PAPERS = ("keep", "turn", "white")
_VERSION = 4
DARK_GROUND = 110  # grey level under which the paper counts as dark
_INK_STEP = 40  # grey levels between the ground and what counts as ink
_MARGIN = 0.06  # white left around the ink box, share of its longer side


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square.

    Attributes:
        side_px: side of the square, pixels.
        fit: `stretch` ignores the aspect, `pad` keeps it, `ink` crops to the drawing
            first and then pads.
        channels: `grey` keeps one channel, `colour` three.
        paper: `keep` the ground as it is, `turn` light-on-dark drawings into
            dark-on-light, or `white`: turn them and level the paper to white.
    """

    side_px: int
    fit: str
    channels: images.Channels
    paper: str

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"`fit` must be one of {FITS}, but {self.fit!r} came")
        if self.paper not in PAPERS:
            raise ValueError(
                f"`paper` must be one of {PAPERS}, but {self.paper!r} came"
            )
        if self.channels not in ("grey", "colour"):
            raise ValueError(
                f"`channels` must be grey or colour, but {self.channels!r} came"
            )
        if not 8 <= self.side_px <= 2048:
            raise ValueError(f"`side_px` must be 8-2048, but {self.side_px} came")


@dataclass(frozen=True)
class PixelCache:
    """The pixels of a manifest.

    Attributes:
        pixels: (N, S, S) or (N, S, S, 3) uint8, memory-mapped, in manifest order;
            white where a picture is unreadable.
        image_ids: (N,) ids, row by row.
        readable: (N,) bool.
        geometry: how they were made.
    """

    pixels: np.ndarray
    image_ids: np.ndarray
    readable: np.ndarray
    geometry: Geometry

    def rows(self, image_ids: pd.Series) -> np.ndarray:
        """(n,) row numbers of `image_ids`; raises KeyError for an unknown one."""
        position = pd.Series(np.arange(len(self.image_ids)), index=self.image_ids)
        return position.loc[list(image_ids)].to_numpy()


def open_pixels(
    manifest: pd.DataFrame,
    data_dir: Path,
    geometry: Geometry,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> PixelCache:
    """The cache of `manifest` under `geometry`, made on the first call.

    Args:
        manifest: rows of `manifest.read_manifest`.
        data_dir: folder the manifest's paths are relative to.
        geometry: size, fit, channels, paper.
        cache_dir: where cache files live; safe to delete.
        progress: called with (done, total) now and then.
    """
    stem = cache_dir / f"pixels-{_cache_key(manifest, data_dir, geometry)}"
    pixels_path = stem.with_suffix(".npy")
    readable_path = stem.with_suffix(".readable.npy")
    if not (pixels_path.exists() and readable_path.exists()):
        _fill(manifest, data_dir, geometry, (pixels_path, readable_path), progress)
    return PixelCache(
        np.load(pixels_path, mmap_mode="r"),
        manifest["image_id"].to_numpy(),
        np.load(readable_path),
        geometry,
    )


def _cache_key(manifest: pd.DataFrame, data_dir: Path, geometry: Geometry) -> str:
    stamps = []
    for path in manifest["path"]:
        try:
            found = (data_dir / path).stat()
            stamps.append((path, found.st_size, found.st_mtime_ns))
        except OSError:
            stamps.append((path, -1, -1))
    return workspace.hash_value([_VERSION, asdict(geometry), stamps])


def _fill(
    manifest: pd.DataFrame,
    data_dir: Path,
    geometry: Geometry,
    paths: tuple[Path, Path],
    progress: Callable[[int, int], None] | None,
) -> None:
    side, total = geometry.side_px, len(manifest)
    shape = (total, side, side) + ((3,) if geometry.channels == "colour" else ())
    readable = np.zeros(total, bool)

    def load(row: int) -> None:
        try:
            path = images.picture_path(data_dir, manifest["path"].iloc[row])
            pixels[row] = fit_picture(
                images.read_picture(path, geometry.channels), geometry
            )
            readable[row] = True
        except images.PictureError:
            pixels[row] = 255  # stays a row; the audit names it and says why

    with workspace.atomic_path(paths[0]) as temporary:
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(load, range(total), chunksize=16), 1):
                if progress and (done % 200 == 0 or done == total):
                    progress(done, total)
        pixels.flush()
    with workspace.atomic_path(paths[1]) as temporary:
        np.save(temporary, readable)


def fit_picture(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Turn, crop, pad and resize one picture.

    Args:
        pixels: (H, W) or (H, W, 3) uint8 of any size.
        geometry: see there.
    Returns:
        (S, S) or (S, S, 3) uint8.
    """
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    ground = ground_level(grey)
    if geometry.paper != "keep" and ground < DARK_GROUND:
        pixels, grey, ground = 255 - pixels, 255 - grey, 255 - ground
    if geometry.paper == "white" and ground < 255:
        level = np.minimum(np.arange(256) * 255 // max(ground, 1), 255).astype(np.uint8)
        pixels, grey, ground = cv2.LUT(pixels, level), cv2.LUT(grey, level), 255
    if geometry.fit == "ink":
        top, bottom, left, right = ink_box(grey, ground)
        pixels = pixels[top:bottom, left:right]
    if geometry.fit != "stretch":
        margin = _MARGIN if geometry.fit == "ink" else 0.0
        pixels = _pad_square(pixels, ground, margin)
    side = geometry.side_px
    shrinks = side < pixels.shape[0] or side < pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(pixels, (side, side), interpolation=method)


def ground_level(grey: np.ndarray) -> int:
    """Grey level of the paper: the median of a picture's outermost pixels, 0-255."""
    edge = max(1, min(grey.shape) // 50)
    border = (
        grey[:edge].ravel(),
        grey[-edge:].ravel(),
        grey[:, :edge].ravel(),
        grey[:, -edge:].ravel(),
    )
    return int(np.median(np.concatenate(border)))


def ink_box(grey: np.ndarray, ground: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) around what differs from the ground, pixels.

    A row or column counts when at least two of its pixels are ink, so that a speck
    does not move the box; a blank picture gives its whole frame.
    """
    ink = cv2.absdiff(grey, np.full_like(grey, ground)) > _INK_STEP
    rows = np.flatnonzero(ink.sum(axis=1) >= 2)
    columns = np.flatnonzero(ink.sum(axis=0) >= 2)
    if len(rows) == 0 or len(columns) == 0:
        return 0, grey.shape[0], 0, grey.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _pad_square(pixels: np.ndarray, ground: int, margin: float) -> np.ndarray:
    """Centre on a square of the ground's grey, `margin` of the longer side around."""
    height, width = pixels.shape[:2]
    side = math.ceil(max(height, width) * (1 + 2 * margin))
    if side * side > 4 * images.MAX_PIXELS:  # a sliver: shrink it before padding
        scale = 2048 / side
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return _pad_square(cv2.resize(pixels, size), ground, margin)
    top, left = (side - height) // 2, (side - width) // 2
    canvas = np.full((side, side, *pixels.shape[2:]), ground, np.uint8)
    canvas[top : top + height, left : left + width] = pixels
    return canvas
