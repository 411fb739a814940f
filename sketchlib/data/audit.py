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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import KDTree

from sketchlib.data import cache, images, measures, passes, records

FRAMES, THUMB_PX = measures.FRAMES, measures.THUMB_PX
_HELD_BYTES = 16_000_000  # of pictures that are decoded, then measured, at a time
_FLUSHED = 2000  # pictures after which the disk is asked to take them

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
    store = None if cache_dir is None else records.store_path(cache_dir, data_dir)
    paths = manifest["path"].tolist()
    files = images.stamp_pictures(data_dir, paths)
    known = records.open_records(store, paths, [file.key for file in files])
    if known.missing or known.remains:
        from sketchlib.data import loops  # noqa: F401  # compiled before a fork

        filler = _make_filler(manifest, data_dir, geometry, cache_dir)
        reader = _Reader(paths, data_dir, files, known, filler)
        how = passes.Pass(reader.name, workers, patience, shared=True)
        _read_missing(reader, known.missing, how, progress)
        known.keep()
        if filler is not None:
            filler.pause()
    return Audit(_make_findings(manifest, known.rows, thresholds), known.rows["thumbs"])


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


# --- the pass -----------------------------------------------------------------


class _Held(NamedTuple):
    """A picture between its decoding and its measuring."""

    row: int
    record: np.ndarray  # (1,) `measures.RECORD`, what is known so far
    source: tuple[Path, bytes]
    seen: images.View


@dataclass(frozen=True)
class _Reader:
    paths: list[str]
    data_dir: Path
    files: list[images.Stamped]
    known: records.Records
    filler: cache.Filler | None

    def name(self, row: int) -> str:
        return self.paths[row]

    def fill(self, rows: Iterable[int]) -> None:
        """Measure pictures into their records, a few dozen decoded at a time.

        To decode many and then measure many takes a tenth to a fifth less than both by
        turns: each kind of work finds its code and tables in the processor's cache.
        """
        held: list[_Held] = []
        weight = 0
        for row in rows:
            record = np.zeros(1, measures.RECORD)
            try:
                one = self._open(row, record)
            except images.PictureError as error:
                self._note(row, record, error)
                continue
            held.append(one)
            weight += one.seen.stored.size + len(one.source[1])
            if weight > _HELD_BYTES:
                self._measure(held)
                held, weight = [], 0
        self._measure(held)

    def _open(self, row: int, made: np.ndarray) -> _Held:
        path = self._find(row)
        data = images.read_bytes(path)
        record = made[0]
        record["bytes"] = len(data)
        record["sha256"] = hashlib.sha256(data).hexdigest()
        least = measures.LEAST_PX if self.filler is None else self.filler.least_px
        seen = images.decode_view(path, data, least)
        record["mode"], record["channels"] = _stored_mode(path, data, seen)
        if not seen.plain:  # decoded whole, and slow to decode a second time
            record["whole_hash"] = measures.whole_hash(seen.colour())
        return _Held(row, made, (path, data), seen)

    def _find(self, row: int) -> Path:
        if self.files[row].key:
            return Path(self.files[row].path)
        return images.picture_path(self.data_dir, self.paths[row])  # says what is wrong

    def _measure(self, held: list[_Held]) -> None:
        levels = [measures.measure_view(one.seen, one.record[0]) for one in held]
        for one, greys in zip(held, levels, strict=True):
            if self.filler is not None:
                self.filler.put(one.row, one.source, one.seen, greys)
            one.record["readable"] = True
            self._complete(one.row, one.record)
        self.known.writer.put([one.row for one in held], [one.record for one in held])

    def _note(self, row: int, record: np.ndarray, error: images.PictureError) -> None:
        record["problem"] = error.reason
        if self.filler is not None:
            self.filler.miss(row)
        self._complete(row, record)
        self.known.writer.put([row], [record])

    def _complete(self, row: int, record: np.ndarray) -> None:
        record["path"] = self.paths[row]
        if record["sha256"][0]:  # not for a file that could not even be opened
            record["key"] = self.files[row].key

    def flush(self) -> None:
        """Have the disk take what is finished."""
        self.known.writer.flush()
        if self.filler is not None:
            self.filler.writer.flush()

    def settle(self, row: int) -> None:
        """Hash all pixels of a picture that its view cannot tell from another's."""
        try:
            pixels = images.read_picture(self._find(row), "colour")
        except images.PictureError:
            return  # it went away meanwhile: the next pass says so
        self.known.rows[row]["whole_hash"] = measures.whole_hash(pixels)


def _read_missing(
    reader: _Reader,
    missing: list[int],
    way: passes.Pass,
    progress: Progress | None,
) -> None:
    total = len(reader.known.rows)
    done, fresh = total - len(missing), 0
    for count in passes.run_rows(reader.fill, missing, way):
        done, fresh = done + count, fresh + count
        if fresh >= _FLUSHED:  # nothing else to do here, and less to wait for at last
            reader.flush()
            fresh = 0
        if progress is not None:
            progress(done, total)
    unsettled, settle = _unsettled(reader.known.rows), passes.one_by_one(reader.settle)
    for _ in passes.run_rows(settle, unsettled, way):
        pass


def _unsettled(rows: np.ndarray) -> list[int]:
    """Pictures whose view is another's, though their files differ."""
    views = pd.Series(rows["pixel_hash"])
    shared = np.flatnonzero(views.duplicated(keep=False) & rows["readable"])
    files = pd.Series(rows["sha256"][shared]).groupby(views[shared].to_numpy())
    alike = shared[files.transform("nunique").to_numpy() > 1]
    chosen = {*alike.tolist(), *_across_decoders(rows)}
    return sorted(row for row in chosen if not rows["whole_hash"][row])


def _across_decoders(rows: np.ndarray) -> set[int]:
    """Pictures read shrunk that look like one of the same size read whole, and those.

    A shrunk JPEG's view cannot equal that of the PNG made from it, so the few whose
    measures agree are compared on all their pixels.
    """
    halved = ~np.char.endswith(rows["pixel_hash"], "/1")
    sizes = rows["width"].astype(np.int64) << 32 | rows["height"]
    shrunk = np.flatnonzero(halved & rows["readable"])
    whole = np.flatnonzero(~halved & rows["readable"])
    shrunk = shrunk[np.isin(sizes[shrunk], sizes[whole])]
    whole = whole[np.isin(sizes[whole], sizes[shrunk])]
    if len(shrunk) == 0:
        return set()
    names = ("brightness", "paper", "contrast", "ink_left", "ink_top", "ink_right")
    scales = np.array([2.0, 6.0, 60.0, 0.08, 0.08, 0.08])
    points = np.column_stack([rows[name] for name in names]) / scales
    sides = np.column_stack([rows["width"], rows["height"]]) * 10.0
    points = np.concatenate([points, sides], axis=1)
    near = KDTree(points[whole]).query_ball_point(points[shrunk], 1.0, p=np.inf)
    maps = rows["thumbs"][:, 1, ::4, ::4]
    return {
        int(end)
        for row, found in zip(shrunk, near, strict=True)
        for other in whole[found]
        if np.abs(maps[row].astype(np.int16) - maps[other]).mean() < 12
        for end in (row, other)
    }


def _stored_mode(path: Path, data: bytes, seen: images.View) -> tuple[str, int]:
    """Colour mode in Pillow's words, and its number of channels."""
    if seen.plain:
        return ("L", 1) if seen.stored.ndim == 2 else ("RGB", 3)
    header = images.read_header(path, data)
    return header.mode[:8], len(header.getbands())


# --- findings -----------------------------------------------------------------


def _make_findings(
    manifest: pd.DataFrame, rows: np.ndarray, thresholds: Thresholds
) -> pd.DataFrame:
    table = pd.DataFrame({name: rows[name] for name in measures.MEASURES})
    settled = rows["whole_hash"] != ""
    table.loc[settled, "pixel_hash"] = rows["whole_hash"][settled]
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
