"""Decoded, resized pixels as one memory-mapped array.

Decoding a JPEG costs more than augmenting it, so every picture is decoded once per
geometry and kept as uint8. The file is keyed by the pictures' names, sizes and
modification times and by the geometry; a changed picture makes a new file.
Limits: rewriting a file within its time stamp's resolution, at the same size, goes
unseen; delete the cache folder then.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import images, mapped, measures, passes

FITS = ("stretch", "pad", "crop", "ink")
PAPERS = ("keep", "turn", "white")
_VERSION = 7
DARK_GROUND = 110  # grey level under which the paper counts as dark
_INK_STEP = 40  # grey levels between the ground and what counts as ink
_MARGIN = 0.06  # white left around the ink box, share of its longer side
_ENOUGH = 1.25  # longer side of a drawing before it is fitted, in sides of the square


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes a square.

    Attributes:
        side_px: side of the square, pixels.
        fit: `stretch` ignores the aspect, `pad` keeps it, `crop` keeps the middle
            square only, `ink` crops to the drawing first and then pads.
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


class CachePaths(NamedTuple):
    """The files of one cache, and where they are made.

    `done` holds for each row 0 (to do), 1 (readable) or 2 (unreadable); both parts
    outlive a killed process, so that the next pass goes on where it was.
    """

    pixels: Path
    readable: Path
    part: Path
    done: Path

    def are_made(self) -> bool:
        return self.pixels.exists() and self.readable.exists()


def cache_paths(
    manifest: pd.DataFrame, data_dir: Path, geometry: Geometry, cache_dir: Path
) -> CachePaths:
    """Where the pixels of `manifest` in this geometry are or will be."""
    stem = f"pixels-{_cache_key(manifest, data_dir, geometry)}"
    ends = (".npy", ".readable.npy", ".part.npy", ".done.npy")
    return CachePaths(*(cache_dir / f"{stem}{end}" for end in ends))


def open_pixels(
    manifest: pd.DataFrame,
    data_dir: Path,
    geometry: Geometry,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> PixelCache:
    """The pixels of every picture of `manifest`, read once and then from the disk.

    Args:
        manifest: rows with `image_id, path`, perhaps `root`, a folder of their own.
        data_dir: folder the paths are relative to.
        geometry: side, fit, channels, paper.
        cache_dir: where cache files live; safe to delete.
        progress: called with (done, total) now and then.
    Raises:
        passes.StalledError: the disk did not answer.
        OSError: there is no room for the cache.
    """
    paths = cache_paths(manifest, data_dir, geometry, cache_dir)
    if not paths.are_made():
        filler = Filler(paths, len(manifest), geometry)
        _fill(filler, _find_places(manifest, data_dir), progress)
        filler.finish()
    return PixelCache(
        np.load(paths.pixels, mmap_mode="r"),
        manifest["image_id"].to_numpy(),
        np.load(paths.readable),
        geometry,
    )


def _cache_key(manifest: pd.DataFrame, data_dir: Path, geometry: Geometry) -> str:
    stamps = []
    for root, path in _find_places(manifest, data_dir):
        try:
            found = os.stat(f"{root}/{path}")
            stamps.append((path, found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):
            stamps.append((path, -1, -1))
    return workspace.hash_value([_VERSION, asdict(geometry), stamps])


def _find_places(manifest: pd.DataFrame, data_dir: Path) -> list[tuple[Path, str]]:
    """(folder, path in it) of every row; a folder of a row's own stands in `root`."""
    paths = manifest["path"].tolist()
    if "root" not in manifest:
        return [(data_dir, path) for path in paths]
    roots = manifest["root"].fillna("").tolist()
    return [
        (Path(root) if root else data_dir, path)
        for root, path in zip(roots, paths, strict=True)
    ]


def _fill(
    filler: "Filler",
    places: list[tuple[Path, str]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Read the pictures that no pass has put yet."""
    from sketchlib.data import loops  # noqa: F401  # compiled before a fork

    rows = filler.rows_left()

    def load(row: int) -> None:
        try:
            path = images.picture_path(*places[row])
            data = images.read_bytes(path)
            seen = images.decode_view(path, data, filler.least_px)
            filler.put(row, (path, data), seen, [seen.grey()])
        except images.PictureError:
            filler.miss(row)  # stays a row; the audit names it and says why

    way = passes.Pass(lambda row: places[row][1], shared=True)
    done = len(places) - len(rows)
    for count in passes.run_rows(passes.one_by_one(load), rows, way):
        done += count
        if progress is not None:
            progress(done, len(places))


class Filler:
    """A cache in the making; its rows are put in any order, from any thread."""

    def __init__(self, paths: CachePaths, total: int, geometry: Geometry) -> None:
        self.paths, self.geometry = paths, geometry
        self.least_px = max(measures.LEAST_PX, 2 * geometry.side_px)
        side = geometry.side_px
        tail = (3,) if geometry.channels == "colour" else ()
        self.pixels = _open_part(paths.part, (total, side, side, *tail))
        self.writer = mapped.Writer(self.pixels, paths.part)
        self.done = _open_part(paths.done, (total,))

    def put(
        self,
        row: int,
        source: tuple[Path, bytes],
        seen: images.View,
        greys: list[np.ndarray],
    ) -> None:
        """Fit one picture, halved first as long as the drawing stays large enough.

        A drawing too small even in the pixels given is decoded whole.

        Args:
            row: its place.
            source: its file and what that holds.
            seen: the pixels.
            greys: their grey and as many of its halves as are at hand.
        """
        side, is_grey = self.geometry.side_px, self.geometry.channels == "grey"
        levels = images.halve(greys if is_grey else [seen.colour()], 4 * side)
        for level in reversed(levels):
            plan = _make_plan(images.as_grey(level), self.geometry)
            is_large = _longer_side(plan[1]) >= _ENOUGH * side
            if is_large:
                break
        if seen.shrink > 1 and not is_large:
            seen = images.decode_view(*source, least_px=1 << 30)
            self.put(row, source, seen, [seen.grey()])
            return
        self.writer.put([row], [_fit(level, plan, self.geometry)])
        self.done[row] = 1

    def miss(self, row: int) -> None:
        """Note an unreadable picture: white."""
        self.pixels[row] = 255
        self.done[row] = 2

    def rows_left(self) -> list[int]:
        """Rows that nobody has put."""
        return np.flatnonzero(self.done == 0).tolist()

    def pause(self) -> None:
        """Write to disk what was put; finish when that is everything."""
        self.pixels.flush()
        self.done.flush()
        if self.done.all():
            self.finish()

    def finish(self) -> None:
        """Put the finished files in their places."""
        self.pixels.flush()
        with workspace.atomic_path(self.paths.readable) as temporary:
            np.save(temporary, self.done == 1)
        with contextlib.suppress(FileNotFoundError):  # another run was first
            os.replace(self.paths.part, self.paths.pixels)
        self.paths.done.unlink(missing_ok=True)


def _open_part(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped uint8 array on disk: what a stopped pass left, or zeros.

    Two runs that start at once share the file of the first; they write the same.
    """
    for _ in range(2):
        with contextlib.suppress(OSError, ValueError, EOFError):
            found = np.load(path, mmap_mode="r+")
            if found.shape == shape and found.dtype == np.uint8:
                return found
            path.unlink()  # cut short, or made by hand
        _make_part(path, shape)
    return np.load(path, mmap_mode="r+")


def _make_part(path: Path, shape: tuple[int, ...]) -> None:
    whole = path.with_name(f"{path.name}-{os.getpid()}")
    mapped.shared_file(whole, np.dtype(np.uint8), shape)
    with contextlib.suppress(FileExistsError):  # another run was first
        os.link(whole, path)
    whole.unlink()


def fit_picture(pixels: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Turn, crop, pad and resize one picture.

    Args:
        pixels: (H, W) or (H, W, 3) uint8 of any size.
        geometry: see there.
    Returns:
        (S, S) or (S, S, 3) uint8.
    """
    plan = _make_plan(images.as_grey(pixels), geometry)
    return _fit(pixels, plan, geometry)


_Box = tuple[int, int, int, int]  # top, bottom, left, right


class _Tones(NamedTuple):
    """What happens to the greys of a picture."""

    table: np.ndarray  # (256,) uint8, from grey to the wanted paper
    ground: int  # the paper's grey after it
    least: int  # the greys that `table` brings near the ground, from
    most: int  # and to


_Plan = tuple[_Tones, _Box]  # and what is shown


def _make_plan(grey: np.ndarray, geometry: Geometry) -> _Plan:
    if geometry.fit == "ink":
        from sketchlib.data import loops

        papers, ring = _list_papers(geometry.paper), _ring_width(grey)
        ground, *box = loops.find_drawing(loops.whole_rows(grey), ring, papers)
        return _make_tones(ground, geometry.paper), (box[0], box[1], box[2], box[3])
    tones = _make_tones(ground_level(grey), geometry.paper)
    if geometry.fit == "crop":
        return tones, _middle_square(*grey.shape)
    return tones, (0, grey.shape[0], 0, grey.shape[1])


@lru_cache
def _list_papers(paper: str) -> np.ndarray:
    """(256, 2) int64: the greys that count as paper, by the ground's grey."""
    found = [_make_tones(ground, paper) for ground in range(256)]
    return np.array([(tones.least, tones.most) for tones in found], np.int64)


@lru_cache(1024)
def _make_tones(ground: int, paper: str) -> _Tones:
    table = np.arange(256, dtype=np.uint8)
    if paper != "keep" and ground < DARK_GROUND:
        table, ground = 255 - table, 255 - ground
    if paper == "white" and ground < 255:
        level = np.minimum(np.arange(256) * 255 // max(ground, 1), 255).astype(np.uint8)
        table, ground = level[table], 255
    near = np.flatnonzero(np.abs(table.astype(int) - ground) <= _INK_STEP)
    return _Tones(table, ground, int(near[0]), int(near[-1]))


def _middle_square(height: int, width: int) -> _Box:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return top, top + side, left, left + side


def _longer_side(box: _Box) -> int:
    return max(box[1] - box[0], box[3] - box[2])


def _fit(pixels: np.ndarray, plan: _Plan, geometry: Geometry) -> np.ndarray:
    (table, ground, *_), (top, bottom, left, right) = plan
    pixels = pixels[top:bottom, left:right]
    if table[254] != 254:  # not the table that changes nothing
        pixels = cv2.LUT(pixels, table)
    if geometry.fit != "stretch":
        margin = _MARGIN if geometry.fit == "ink" else 0.0
        pixels = _pad_square(pixels, ground, margin)
    side = geometry.side_px
    if side < pixels.shape[0] or side < pixels.shape[1]:
        return images.shrink(pixels, side, side)
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_LINEAR)


def ground_level(grey: np.ndarray) -> int:
    """Grey level of the paper: the median of a picture's outermost pixels, 0-255."""
    from sketchlib.data import loops

    return loops.ring_level(loops.whole_rows(grey), 0, _ring_width(grey))


def _ring_width(grey: np.ndarray) -> int:
    return max(1, min(grey.shape) // 50)


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
