"""Measurements and flags of every picture, in one pass over the files.

Each file is read and decoded once, large JPEGs at half their size or less. The pass
keeps two small ink maps of each picture (its ink box, its whole frame), which is all
that `duplicates` needs, and fills the pixel cache on its way. Results are cached by
path, size and modification time, so that a second pass reads only what changed and a
stopped one goes on where it was. It looks and never drops: an unreadable picture is
a row with its problem.
Limits: a JPEG and a lossless file are compared pixel by pixel only where their
measures agree.
"""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from sketchlib import workspace
from sketchlib.data import cache, images, measures, passes

VERSION = 3  # raise it when a measure or an ink map changes its meaning
FRAMES, THUMB_PX = measures.FRAMES, measures.THUMB_PX
_SAVE_SECONDS = 30.0

FLAGS = (
    "unreadable",
    "blank",
    "inverted",
    "coloured",
    "tiny",
    "odd_aspect",
    "low_contrast",
    "text",
    "blurred",
    "border",
)


@dataclass(frozen=True)
class Thresholds:
    """Where a measure becomes a flag.

    Attributes:
        blank_contrast: grey levels (0-255) between paper and ink below which a
            picture counts as blank.
        blank_ink: share of inked pixels (0-1) below which it counts as blank.
        dark_paper: grey level (0-255) below which the paper is dark: inverted.
        coloured: colourfulness (Hasler and Süsstrunk, 0 grey to about 100).
        tiny_px: shorter side, pixels.
        odd_aspect: longer side over shorter side.
        low_contrast: grey levels (0-255) between paper and ink.
        text_strokes: strokes crossed by each row of a lettering band at the top or
            bottom edge.
        blur: 0 (an edge is one step wide) to 1 (no edge at all), at 128-255 px.
        border: share (0-1) of each of the four edges that a frame line covers.
    """

    blank_contrast: float = 24.0
    blank_ink: float = 0.0004
    dark_paper: float = 100.0
    coloured: float = 12.0
    tiny_px: int = 64
    odd_aspect: float = 3.0
    low_contrast: float = 70.0
    text_strokes: float = 8.0
    blur: float = 0.85
    border: float = 0.85


USUAL = Thresholds()
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Audit:
    """What one pass saw.

    Attributes:
        findings: one row per picture, in manifest order.
        thumbs: (N, 2, 96, 96) uint8 ink maps, 0 paper to 255 full ink, aspect kept,
            centred: the ink box, then the whole frame. Zero where unreadable.
    """

    findings: pd.DataFrame
    thumbs: np.ndarray


def measure(
    manifest: pd.DataFrame,
    data_dir: Path,
    *,
    thresholds: Thresholds = USUAL,
    cache_dir: Path | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The findings alone; see `inspect`, which also gives the ink maps."""
    return inspect(
        manifest,
        data_dir,
        thresholds=thresholds,
        cache_dir=cache_dir,
        workers=workers,
        progress=progress,
    ).findings


def inspect(
    manifest: pd.DataFrame,
    data_dir: Path,
    *,
    thresholds: Thresholds = USUAL,
    cache_dir: Path | None = None,
    geometry: cache.Geometry | None = None,
    workers: int = 0,
    progress: Progress | None = None,
    patience: float = passes.PATIENCE_SECONDS,
) -> Audit:
    """Measure every picture of `manifest`; files are read once, on all cores.

    Args:
        manifest: rows with `image_id, path`.
        data_dir: folder the paths are relative to.
        thresholds: where a measure becomes a flag; changing them reads no file.
        cache_dir: keeps the measures between calls; safe to delete.
        geometry: fills the pixel cache of this geometry in the same pass, so that
            `cache.open_pixels` finds it made; needs `cache_dir`.
        workers: threads; 0 means one for each core.
        progress: called with (done, total) now and then.
        patience: seconds without any picture read until the pass is given up.
    Raises:
        passes.StalledError: the disk did not answer for `patience` seconds.
    """
    store = None if cache_dir is None else _store_path(cache_dir, data_dir)
    old = _read_store(store)
    keys = [_file_key(data_dir, path) for path in manifest["path"]]
    records, missing = _recall(old, manifest["path"], keys)
    if missing:
        filler = _make_filler(manifest, data_dir, geometry, cache_dir)
        save = _Saver(store, records, old, missing)
        reader = _Reader(manifest["path"].tolist(), data_dir, keys, records, filler)
        how = passes.Pass(reader.name, workers, patience, shared=True)
        _read_missing(reader, missing, (how, progress, save))
        if filler is not None:
            filler.pause()
    return Audit(_make_findings(manifest, records, thresholds), records["thumbs"])


def _make_filler(
    manifest: pd.DataFrame,
    data_dir: Path,
    geometry: cache.Geometry | None,
    cache_dir: Path | None,
) -> cache.Filler | None:
    if geometry is None or cache_dir is None:
        return None
    paths = cache.cache_paths(manifest, data_dir, geometry, cache_dir)
    return None if paths.are_made() else cache.Filler(paths, len(manifest), geometry)


# --- the cache ----------------------------------------------------------------


def _store_path(cache_dir: Path, data_dir: Path) -> Path:
    place = workspace.hash_value([str(data_dir.resolve()), VERSION])
    return cache_dir / f"audit-{place}.npy"


def _read_store(store: Path | None) -> np.ndarray:
    """Records of earlier passes; none when there is no file or it is not ours."""
    if store is None or not store.exists():
        return np.empty(0, measures.RECORD)
    try:
        found = np.load(store, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return np.empty(0, measures.RECORD)  # cut by hand or by a full disk: read anew
    return found if found.dtype == measures.RECORD else np.empty(0, measures.RECORD)


def _file_key(data_dir: Path, path: str) -> str:
    """Identity of a file's content: size and time of change; empty when missing."""
    try:
        found = os.stat(images.find_picture(data_dir, path))
    except (images.PictureError, OSError, ValueError):
        return ""
    return f"{found.st_size:x}-{found.st_mtime_ns:x}"


def _recall(
    old: np.ndarray, paths: pd.Series, keys: list[str]
) -> tuple[np.ndarray, list[int]]:
    """Records in manifest order and the rows that have to be read."""
    row_of = {
        (p, k): i for i, (p, k) in enumerate(zip(old["path"], old["key"], strict=True))
    }
    found = [row_of.get((p, k), -1) for p, k in zip(paths, keys, strict=True)]
    records = passes.shared_zeros(len(found), measures.RECORD)
    known = [row for row, at in enumerate(found) if at >= 0]
    if len(known) == len(old) == len(found) and found == list(range(len(found))):
        return old, []  # nothing changed: stay memory-mapped
    for row in known:
        records[row] = old[found[row]]
    return records, [row for row, at in enumerate(found) if at < 0]


class _Saver:
    """Writes the store now and then, so that a stopped pass can go on."""

    def __init__(
        self,
        store: Path | None,
        records: np.ndarray,
        old: np.ndarray,
        missing: list[int],
    ) -> None:
        self.store, self.records, self.missing = store, records, missing
        others = ~np.isin(old["path"], records["path"])
        self.others = np.array(old[others]) if others.any() else old[:0]
        self.due = time.monotonic() + _SAVE_SECONDS

    def maybe(self) -> None:
        if time.monotonic() > self.due:
            self.now()

    def now(self) -> None:
        """Replace the store by all finished records, those of other rows kept."""
        if self.store is None or not self.records["key"][self.missing].any():
            return
        started = time.monotonic()
        done = self.records["key"] != ""
        kept = self.records if done.all() else self.records[done]
        kept = np.concatenate([kept, self.others]) if len(self.others) else kept
        with workspace.atomic_path(self.store) as temporary:
            np.save(temporary, kept)
        spent = time.monotonic() - started
        self.due = time.monotonic() + max(_SAVE_SECONDS, 10 * spent)


# --- the pass -----------------------------------------------------------------


@dataclass(frozen=True)
class _Reader:
    paths: list[str]
    data_dir: Path
    keys: list[str]
    records: np.ndarray
    filler: cache.Filler | None

    def name(self, row: int) -> str:
        return self.paths[row]

    def fill(self, row: int) -> None:
        """Measure one row's picture into its record."""
        record = self.records[row]
        try:
            self._measure(row, record)
        except images.PictureError as error:
            record["problem"] = error.reason
            if self.filler is not None:
                self.filler.miss(row)
        record["path"] = self.paths[row]
        if record["sha256"]:  # not for a file that could not even be opened
            record["key"] = self.keys[row]  # last: the record is complete

    def _measure(self, row: int, record: np.void) -> None:
        path = images.picture_path(self.data_dir, self.paths[row])
        data = images.read_bytes(path)
        record["bytes"] = len(data)
        record["sha256"] = hashlib.sha256(data).hexdigest()
        least = measures.VIEW_PX if self.filler is None else self.filler.least_px
        seen = images.decode_view(path, data, least)
        record["mode"], record["channels"] = _stored_mode(path, data, seen)
        grey = measures.measure_view(seen, record)
        record["readable"] = True
        if self.filler is not None:
            self.filler.put(row, (path, data), seen, grey)

    def settle(self, row: int) -> None:
        """Replace a shrunk picture's hash by that of all its pixels."""
        path = images.picture_path(self.data_dir, self.paths[row])
        try:
            seen = images.decode_view(path, images.read_bytes(path), 1 << 30)
        except images.PictureError:
            return  # it went away meanwhile: the next pass says so
        self.records[row]["pixel_hash"] = measures.pixel_hash(seen, seen.grey())


def _read_missing(
    reader: _Reader,
    missing: list[int],
    how: tuple[passes.Pass, Progress | None, _Saver],
) -> None:
    way, progress, save = how
    total = len(reader.records)
    done = total - len(missing)
    try:
        for count in passes.run_rows(reader.fill, missing, way):
            done += count
            save.maybe()
            if progress is not None:
                progress(done, total)
        for _ in passes.run_rows(reader.settle, _unsettled(reader.records), way):
            pass
    finally:
        save.now()


def _unsettled(records: np.ndarray) -> list[int]:
    """Rows read shrunk that look like a file of the same size read whole.

    A shrunk JPEG's hash cannot equal that of the PNG made from it, so the few whose
    measures agree are compared on all their pixels.
    """
    shrunk = ~np.char.endswith(records["pixel_hash"], "/1") & records["readable"]
    whole = records["readable"] & ~shrunk
    rows, others = np.flatnonzero(shrunk), np.flatnonzero(whole)
    if len(rows) == 0 or len(others) == 0:
        return []
    names = ("brightness", "paper", "contrast", "ink_left", "ink_top", "ink_right")
    scales = np.array([2.0, 6.0, 60.0, 0.08, 0.08, 0.08])
    points = np.column_stack([records[name] for name in names]) / scales
    sides = np.column_stack([records["width"], records["height"]]) * 10.0
    points = np.concatenate([points, sides], axis=1)
    near = KDTree(points[others]).query_ball_point(points[rows], 1.0, p=np.inf)
    small = records["thumbs"][:, 1, ::4, ::4].astype(np.int16)
    return [
        int(row)
        for row, found in zip(rows, near, strict=True)
        if any(np.abs(small[row] - small[others[at]]).mean() < 12 for at in found)
    ]


def _stored_mode(path: Path, data: bytes, seen: images.View) -> tuple[str, int]:
    """Colour mode in Pillow's words, and its number of channels."""
    if seen.plain:
        return ("L", 1) if seen.stored.ndim == 2 else ("RGB", 3)
    header = images.read_header(path, data)
    return header.mode[:8], len(header.getbands())


# --- findings -----------------------------------------------------------------


def _make_findings(
    manifest: pd.DataFrame, records: np.ndarray, thresholds: Thresholds
) -> pd.DataFrame:
    table = pd.DataFrame({name: records[name] for name in measures.MEASURES})
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    sides = table[["width", "height"]].clip(lower=1)
    table.insert(8, "aspect", sides["width"] / sides["height"])
    dark = table["paper"] < thresholds.dark_paper
    table.insert(17, "inverted", table["readable"] & dark)
    measured = [name for name, kind in measures.MEASURES.items() if kind == "f4"]
    table.loc[~table["readable"], [*measured, "aspect"]] = np.nan
    table["flags"] = _join_flags(table, thresholds)
    return table


def _join_flags(table: pd.DataFrame, limits: Thresholds) -> list[str]:
    """The names of the flags of each row, `;` between them."""
    small = table[["width", "height"]].min(axis=1)
    ratio = np.maximum(table["aspect"], 1 / table["aspect"])
    blank = (table["contrast"] < limits.blank_contrast) | (
        table["ink"] < limits.blank_ink
    )
    raised = {
        "unreadable": ~table["readable"],
        "blank": blank,
        "inverted": table["inverted"],
        "coloured": table["colourfulness"] > limits.coloured,
        "tiny": table["readable"] & (small < limits.tiny_px),
        "odd_aspect": ratio > limits.odd_aspect,
        "low_contrast": (table["contrast"] < limits.low_contrast) & ~blank,
        "text": table["text_band"] >= limits.text_strokes,
        "blurred": (table["blur"] > limits.blur) & ~blank,
        "border": (table["border"] > limits.border) & ~blank,
    }
    rows = np.column_stack([raised[name].to_numpy() for name in FLAGS])
    return [";".join(np.array(FLAGS)[row]) for row in rows]


def flagged(findings: pd.DataFrame, flag: str) -> pd.Series:
    """Which rows carry `flag`, as a boolean column.

    Raises:
        ValueError: there is no such flag.
    """
    if flag not in FLAGS:
        raise ValueError(f"`flag` must be one of {FLAGS}, but {flag!r} came")
    return (";" + findings["flags"] + ";").str.contains(f";{flag};", regex=False)
