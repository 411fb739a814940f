"""Measurements and flags of every picture, in one pass over the files.

Each file is read and decoded once; from then on the work is done on views of at most
255 px, since float work on whole pictures costs many times their decoding. The pass
also keeps two small ink maps of each picture (its ink box, its whole frame), which is
all that `duplicates` needs. Results are cached by path, size and modification time,
so that a second pass reads only what changed and a stopped one goes on where it was.
It looks and never drops: an unreadable picture is a row with its problem.
Limits: lettering, borders and blur are cheap measures made for pointing, not proof.
"""

import contextlib
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import images

VERSION = 1  # raise it when a measure or an ink map changes its meaning
THUMB_PX = 96
FRAMES = ("box", "full")
_VIEW_PX = 256  # measures are taken on halvings of the picture below this side
_MIN_INK = 20  # grey levels between paper and the faintest ink
_SAVE_SECONDS = 30.0
_CHUNK = 16

# On each picture's record: what is measured, then the two ink maps.
_MEASURES = {
    "readable": "?",
    "problem": "U160",
    "bytes": "i8",
    "width": "i4",
    "height": "i4",
    "channels": "i2",
    "mode": "U8",
    "brightness": "f4",
    "contrast": "f4",
    "colourfulness": "f4",
    "ink": "f4",
    "ink_left": "f4",
    "ink_top": "f4",
    "ink_right": "f4",
    "ink_bottom": "f4",
    "paper": "f4",
    "blur": "f4",
    "border": "f4",
    "text_band": "f4",
    "sha256": "U64",
    "pixel_hash": "U40",
}
_RECORD = np.dtype(
    [("path", "U400"), ("key", "U32")]
    + list(_MEASURES.items())
    + [("thumbs", "u1", (len(FRAMES), THUMB_PX, THUMB_PX))]
)
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
Share = Callable[[int, np.ndarray], None]


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
    workers: int = 0,
    progress: Progress | None = None,
    share: Share | None = None,
) -> Audit:
    """Measure every picture of `manifest`; files are read once, on all cores.

    Args:
        manifest: rows with `image_id, path`.
        data_dir: folder the paths are relative to.
        thresholds: where a measure becomes a flag; changing them reads no file.
        cache_dir: keeps the measures between calls; safe to delete.
        workers: threads; 0 means one for each core.
        progress: called with (done, total) now and then.
        share: called from the threads with (row, pixels as stored) of each picture
            that is read, so that other caches need not decode it again.
    """
    store = None if cache_dir is None else _store_path(cache_dir, data_dir)
    old = _read_store(store)
    keys = [_file_key(data_dir, path) for path in manifest["path"]]
    records, missing = _recall(old, manifest["path"], keys)
    if missing:
        save = _Saver(store, records, old, missing)
        reader = _Reader(manifest["path"].tolist(), data_dir, keys, share)
        _read_missing(reader, records, missing, (workers, progress, save))
    return Audit(_make_findings(manifest, records, thresholds), records["thumbs"])


# --- the cache ----------------------------------------------------------------


def _store_path(cache_dir: Path, data_dir: Path) -> Path:
    place = workspace.hash_value([str(data_dir.resolve()), VERSION])
    return cache_dir / f"audit-{place}.npy"


def _read_store(store: Path | None) -> np.ndarray:
    """Records of earlier passes; none when there is no file or it is not ours."""
    if store is None or not store.exists():
        return np.empty(0, _RECORD)
    try:
        found = np.load(store, mmap_mode="r")
    except (ValueError, OSError, EOFError):
        return np.empty(0, _RECORD)  # cut by hand or by a full disk: read anew
    return found if found.dtype == _RECORD else np.empty(0, _RECORD)


def _file_key(data_dir: Path, path: str) -> str:
    """Identity of a file's content: size and time of change; empty when missing."""
    try:
        found = images.picture_path(data_dir, path).stat()
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
    records = np.zeros(len(found), _RECORD)
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
    share: Share | None

    def fill(self, records: np.ndarray, rows: list[int]) -> int:
        """Measure `rows` into `records`; returns how many."""
        for row in rows:
            record = records[row]
            try:
                self._measure(row, record)
            except images.PictureError as error:
                record["problem"] = error.reason
            record["path"] = self.paths[row]
            if record["sha256"]:  # not for a file that could not even be opened
                record["key"] = self.keys[row]  # last: the record is complete
        return len(rows)

    def _measure(self, row: int, record: np.void) -> None:
        path = images.picture_path(self.data_dir, self.paths[row])
        data = images.read_bytes(path)
        record["bytes"] = len(data)
        record["sha256"] = hashlib.sha256(data).hexdigest()
        pixels = images.decode_picture(path, data, "stored")
        record["mode"], record["channels"] = _stored_mode(path, data, pixels)
        measure_pixels(pixels, record)
        record["readable"] = True
        if self.share is not None:
            self.share(row, pixels)


def _read_missing(
    reader: _Reader,
    records: np.ndarray,
    missing: list[int],
    how: tuple[int, Progress | None, _Saver],
) -> None:
    workers, progress, save = how
    chunks = [missing[at : at + _CHUNK] for at in range(0, len(missing), _CHUNK)]
    done = len(records) - len(missing)
    with one_thread_each(workers) as pool:
        try:
            for count in pool.map(lambda rows: reader.fill(records, rows), chunks):
                done += count
                save.maybe()
                if progress is not None:
                    progress(done, len(records))
        finally:
            pool.shutdown(cancel_futures=True)
            save.now()


@contextlib.contextmanager
def one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """A pool in which OpenCV stays on the calling thread; 0 workers: one per core.

    Python hands its lock on every 5 ms, longer than a picture takes; with 0.2 ms two
    threads read 1.6 times as fast. Processes were 1.4 times faster still, but need
    an importable main module or a fork beside running threads.
    """
    interval, threads = sys.getswitchinterval(), cv2.getNumThreads()
    sys.setswitchinterval(0.0002)
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            yield pool
    finally:
        cv2.setNumThreads(threads)
        sys.setswitchinterval(interval)


def _stored_mode(path: Path, data: bytes, pixels: np.ndarray) -> tuple[str, int]:
    """Colour mode in Pillow's words, and its number of channels."""
    if images.jpeg_size(data) is not None:
        return ("L", 1) if pixels.ndim == 2 else ("RGB", 3)
    header = images.read_header(path, data)
    return header.mode[:8], len(header.getbands())


def measure_pixels(pixels: np.ndarray, record: np.void) -> None:
    """Fill the measures and ink maps of one decoded picture into its record.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
        record: element of an array with this module's record type.
    """
    height, width = pixels.shape[:2]
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    levels = _halvings(grey)
    view = levels[-1]
    paper = _paper_level(view)
    depth = cv2.absdiff(view, np.full_like(view, paper))
    contrast = _top_level(depth)
    mask = depth > max(_MIN_INK, 0.3 * contrast)
    box = _ink_box(mask)
    record["width"], record["height"] = width, height
    record["brightness"], record["paper"] = cv2.mean(view)[0], paper
    record["contrast"], record["ink"] = contrast, np.count_nonzero(mask) / mask.size
    for side, value in zip(("left", "top", "right", "bottom"), box, strict=True):
        record[f"ink_{side}"] = value
    record["colourfulness"] = _colourfulness(pixels)
    record["blur"] = _blur(view, contrast)
    record["border"] = _border(mask)
    record["text_band"] = _text_band(levels[max(len(levels) - 2, 0)], paper, contrast)
    tone = _ink_curve(paper, contrast)
    record["thumbs"][0] = _ink_map(levels, box, tone)
    record["thumbs"][1] = _ink_map(levels, (0.0, 0.0, 1.0, 1.0), tone)
    record["pixel_hash"] = _pixel_hash(grey, pixels, record["thumbs"])


def _halvings(grey: np.ndarray) -> list[np.ndarray]:
    """The picture and its halves down to under 256 px; exact halving is fast."""
    levels = [grey]
    while max(levels[-1].shape) >= _VIEW_PX:
        last = levels[-1]
        half = (max(1, last.shape[0] // 2), max(1, last.shape[1] // 2))
        even = last[: half[0] * 2, : half[1] * 2]
        levels.append(cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA))
    return levels


def _paper_level(view: np.ndarray) -> int:
    """Grey level of the ground: the median of a ring along the edge.

    Where a ring further in says otherwise (a frame, a scanner's rim), the level that
    more of the picture has decides.
    """
    wide = max(1, round(0.03 * min(view.shape)))
    outer = _ring_level(view, wide)
    inset = view[3 * wide : -3 * wide, 3 * wide : -3 * wide]
    if inset.size == 0:
        return outer
    inner = _ring_level(inset, wide)
    if abs(inner - outer) <= 2 * _MIN_INK:
        return outer
    shares = [_share_near(view, level) for level in (outer, inner)]
    return outer if shares[0] >= shares[1] else inner


def _ring_level(view: np.ndarray, wide: int) -> int:
    ring = (view[:wide], view[-wide:], view[:, :wide], view[:, -wide:])
    counts = np.bincount(np.concatenate([part.ravel() for part in ring]))
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def _share_near(view: np.ndarray, level: int) -> float:
    near = cv2.inRange(view, max(level - _MIN_INK, 0), min(level + _MIN_INK, 255))
    return cv2.countNonZero(near) / view.size


def _top_level(values: np.ndarray) -> int:
    """The level that 0.1 % of the values, and at least 8, reach: a safe maximum."""
    counts = cv2.calcHist([values], [0], None, [256], [0, 256]).ravel()
    enough = min(max(8, values.size // 1000), values.size)
    return int(np.flatnonzero(np.cumsum(counts[::-1])[::-1] >= enough)[-1])


def _ink_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) as shares of the sides; specks do not count."""
    sides = []
    for axis in (0, 1):
        counts = cv2.reduce(mask.view(np.uint8), axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
        weight = np.cumsum(counts)
        speck = 0.002 * weight[-1]
        first = np.searchsorted(weight, speck, side="right")
        last = np.searchsorted(weight, weight[-1] - speck)
        sides.append((first / len(weight), min(last + 1, len(weight)) / len(weight)))
    (left, right), (top, bottom) = sides
    if not mask.any():
        return 0.0, 0.0, 1.0, 1.0
    return float(left), float(top), float(right), float(bottom)


def _ink_curve(paper: int, contrast: int) -> np.ndarray:
    """(256,) uint8 table from grey to ink; paper grain is 0, full ink 255."""
    floor = 0.15 * max(contrast, _MIN_INK)
    depth = np.abs(np.arange(256.0) - paper)
    ink = (depth - floor) / max(contrast - floor, 1.0)
    return (255 * ink.clip(0, 1)).round().astype(np.uint8)


def _ink_map(
    levels: list[np.ndarray],
    box: tuple[float, float, float, float],
    tone: np.ndarray,
) -> np.ndarray:
    """(96, 96) ink of a box of the picture, aspect kept, centred on paper."""
    level = next(
        (at for at in reversed(levels) if _box_side(at, box) >= THUMB_PX), levels[0]
    )
    height, width = level.shape
    left, right = int(box[0] * width), max(round(box[2] * width), 1)
    top, bottom = int(box[1] * height), max(round(box[3] * height), 1)
    part = level[min(top, bottom - 1) : bottom, min(left, right - 1) : right]
    scale = THUMB_PX / max(part.shape)
    size = [max(1, min(THUMB_PX, round(side * scale))) for side in part.shape]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    ink = cv2.resize(cv2.LUT(part, tone), size[::-1], interpolation=method)
    canvas = np.zeros((THUMB_PX, THUMB_PX), np.uint8)
    y, x = (THUMB_PX - size[0]) // 2, (THUMB_PX - size[1]) // 2
    canvas[y : y + size[0], x : x + size[1]] = ink
    return canvas


def _box_side(level: np.ndarray, box: tuple[float, float, float, float]) -> float:
    height, width = level.shape
    return max((box[2] - box[0]) * width, (box[3] - box[1]) * height)


def _colourfulness(pixels: np.ndarray) -> float:
    """Hasler and Süsstrunk (2003) on about 48 × 48 sampled pixels; 0 is grey."""
    if pixels.ndim == 2:
        return 0.0
    down, across = (max(1, side // 48) for side in pixels.shape[:2])
    sample = np.ascontiguousarray(pixels[::down, ::across])
    red, green, blue = cv2.split(sample)
    if cv2.norm(red, green, cv2.NORM_INF) + cv2.norm(red, blue, cv2.NORM_INF) < 8:
        return 0.0  # three equal channels, but for rounding
    red, green, blue = cv2.split(sample.astype(np.float32))
    one, two = red - green, (red + green) / 2 - blue
    spread = np.hypot(one.std(), two.std())
    return float(spread + 0.3 * np.hypot(one.mean(), two.mean()))


def _blur(view: np.ndarray, contrast: int) -> float:
    """1 minus the steepest step between neighbours, as a share of the contrast."""
    if min(view.shape) < 2 or contrast < 1:
        return 0.0
    across = cv2.norm(view[:, 1:], view[:, :-1], cv2.NORM_INF)
    down = cv2.norm(view[1:], view[:-1], cv2.NORM_INF)
    return max(0.0, 1 - max(across, down) / contrast)


def _border(mask: np.ndarray) -> float:
    """Least share of an edge, of the four, that one line near it covers."""
    wide = max(1, round(0.06 * min(mask.shape)))
    if not mask[:, mask.shape[1] // 2][:wide].any():
        return 0.0  # no line crosses the middle of the top edge
    rows = mask[:wide], mask[-wide:]
    columns = mask[:, :wide].T, mask[:, -wide:].T
    return float(min(edge.mean(axis=1).max() for edge in (*rows, *columns)))


def _text_band(level: np.ndarray, paper: int, contrast: int) -> float:
    """Strokes per row of the busiest band of rows at the top or bottom edge.

    Lettering crosses many short strokes in each of a few neighbouring rows.
    """
    tall = round(0.18 * level.shape[0])
    if tall < 6:
        return 0.0
    step = max(_MIN_INK, 0.3 * contrast)
    bands = np.concatenate([level[:tall], level[-tall:]])
    inked = (cv2.absdiff(bands, np.full_like(bands, paper)) > step).view(np.uint8)
    rises = (inked[:, 1:] > inked[:, :-1]).view(np.uint8)
    strokes = cv2.reduce(rises, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).reshape(2, tall)
    four = np.minimum(strokes[:, 1:], strokes[:, :-1])
    four = np.minimum(four[:, 2:], four[:, :-2])  # the least of four rows
    return float(four.max())


def _pixel_hash(grey: np.ndarray, pixels: np.ndarray, thumbs: np.ndarray) -> str:
    """A hash that decoded pictures share only when they are the same.

    CRC-32 of all grey pixels, of the ink maps and of sampled colours, and the size:
    a pass at 3 GB/s where sha256 would take a quarter of the decoding time.
    """
    parts = (grey, thumbs, pixels[::16, ::16])
    sums = "".join(
        f"{zlib.crc32(np.ascontiguousarray(part).data):08x}" for part in parts
    )
    return f"{sums}-{grey.shape[1]:x}x{grey.shape[0]:x}"


# --- findings -----------------------------------------------------------------


def _make_findings(
    manifest: pd.DataFrame, records: np.ndarray, thresholds: Thresholds
) -> pd.DataFrame:
    table = pd.DataFrame({name: records[name] for name in _MEASURES})
    table.insert(0, "image_id", manifest["image_id"].to_numpy())
    sides = table[["width", "height"]].clip(lower=1)
    table.insert(8, "aspect", sides["width"] / sides["height"])
    dark = table["paper"] < thresholds.dark_paper
    table.insert(17, "inverted", table["readable"] & dark)
    measured = [name for name, kind in _MEASURES.items() if kind == "f4"]
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
