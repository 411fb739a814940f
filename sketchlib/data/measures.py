"""What is measured on one decoded picture: paper, ink, edges, two small ink maps.

Work is done on views of at most 255 px, mostly through their histograms, since float
work on whole pictures costs many times their decoding.
Limits: lettering, borders and blur are cheap measures made for pointing, not proof.
"""

import hashlib
import zlib
from functools import lru_cache

import cv2
import numpy as np

from sketchlib.data import images

THUMB_PX = 96
FRAMES = ("box", "full")
VIEW_PX = 256  # measures are taken on halvings of the picture below this side
LEAST_PX = 192  # longer side of a picture shrunk while decoding; see `decode_view`
_MIN_INK = 20  # grey levels between paper and the faintest ink
_LEVELS = np.arange(256)

# On each picture's record: what is measured, then the two ink maps; `whole_hash` is
# made where `pixel_hash`, of a small view, cannot tell pictures apart, and for formats
# that are slow to decode a second time.
MEASURES = {
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
    "pixel_hash": "U48",
}
RECORD = np.dtype(
    [("path", "U400"), ("whole_hash", "U48")]
    + list(MEASURES.items())
    + [("thumbs", "u1", (len(FRAMES), THUMB_PX, THUMB_PX))]
    + [("key", "U32")]  # last, so that a record with a key was written to its end
)


def measure_view(seen: images.View, record: np.void) -> list[np.ndarray]:
    """Fill the measures and ink maps of one picture into its record.

    Args:
        seen: its pixels, of 192 px or more where the picture has them.
        record: element of an array with this module's record type.
    Returns:
        (H, W) the grey pixels and their halves, down to those that were measured.
    """
    levels = images.halve([seen.grey()], VIEW_PX)
    view = levels[-1]
    counts = _histogram(view)
    paper = _paper_level(view, counts)
    depths = np.bincount(np.abs(_LEVELS - paper), counts, 256)
    contrast = _top_level(depths)
    step = int(max(_MIN_INK, 0.3 * contrast))
    ground = max(paper - step, 0), min(paper + step, 255)
    mask, tone = images.mark_ink(view, *ground), _ink_curve(paper, contrast)
    box = _ink_box(mask)
    record["width"], record["height"] = seen.width, seen.height
    record["brightness"], record["paper"] = counts @ _LEVELS / view.size, paper
    record["contrast"], record["ink"] = contrast, depths[step + 1 :].sum() / view.size
    for side, value in zip(("left", "top", "right", "bottom"), box, strict=True):
        record[f"ink_{side}"] = value
    record["colourfulness"] = _colourfulness(seen.stored)
    record["blur"] = _blur(view, contrast)
    record["border"] = _border(mask)
    record["text_band"] = _text_band(levels[max(len(levels) - 2, 0)], ground)
    thumbs = record["thumbs"]
    toned = {len(levels) - 1: cv2.LUT(view, tone)}
    for frame, canvas in zip((box, (0.0, 0.0, 1.0, 1.0)), thumbs, strict=True):
        at = _choose_level(levels, frame)
        if at not in toned:
            toned[at] = cv2.LUT(levels[at], tone)
        _ink_map(toned[at], frame, canvas)
    record["pixel_hash"] = _view_hash(view, seen)
    return levels


def _histogram(values: np.ndarray) -> np.ndarray:
    """(256,) float32 counts of uint8 values."""
    return cv2.calcHist([values], [0], None, [256], [0, 256]).ravel()


def _paper_level(view: np.ndarray, counts: np.ndarray) -> int:
    """Grey level of the ground: the median of a ring along the edge.

    Where a ring further in says otherwise (a frame, a scanner's rim), the level that
    more of the picture has decides.
    """
    wide = max(1, round(0.03 * min(view.shape)))
    outer = _ring_level(view, wide)
    if counts[max(0, outer - _MIN_INK) : outer + _MIN_INK + 1].sum() > view.size / 2:
        return outer  # no other level can have more of the picture
    inset = view[3 * wide : -3 * wide, 3 * wide : -3 * wide]
    if inset.size == 0:
        return outer
    inner = _ring_level(inset, wide)
    if abs(inner - outer) <= 2 * _MIN_INK:
        return outer
    near = [np.abs(_LEVELS - level) <= _MIN_INK for level in (outer, inner)]
    return outer if counts[near[0]].sum() >= counts[near[1]].sum() else inner


def _ring_level(view: np.ndarray, wide: int) -> int:
    parts = (view[:wide], view[-wide:], view[:, :wide], view[:, -wide:])
    return images.middle_level(parts)


def _top_level(counts: np.ndarray) -> int:
    """The level that 0.1 % of the counted, and at least 8, reach: a safe maximum."""
    size = int(counts.sum())
    enough = min(max(8, size // 1000), size)
    return 255 - int(counts[::-1].cumsum().searchsorted(enough))


def _ink_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) as shares of the sides; specks do not count."""
    sides = []
    for axis in (0, 1):
        weight = cv2.reduce(mask, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).cumsum()
        if weight[-1] == 0:
            return 0.0, 0.0, 1.0, 1.0
        speck = 0.002 * weight[-1]
        first = weight.searchsorted(speck, side="right")
        last = weight.searchsorted(weight[-1] - speck)
        sides.append((first / len(weight), min(last + 1, len(weight)) / len(weight)))
    (left, right), (top, bottom) = sides
    return float(left), float(top), float(right), float(bottom)


@lru_cache(4096)
def _ink_curve(paper: int, contrast: int) -> np.ndarray:
    """(256,) uint8 table from grey to ink; paper grain is 0, full ink 255.

    The root lifts faint and very thin lines to where they count beside black filling.
    """
    floor = 0.15 * max(contrast, _MIN_INK)
    depth = np.abs(_LEVELS - paper)
    ink = ((depth - floor) / max(contrast - floor, 1.0)).clip(0, 1)
    return (255 * np.sqrt(ink)).round().astype(np.uint8)


def _ink_map(
    ink: np.ndarray, box: tuple[float, float, float, float], canvas: np.ndarray
) -> None:
    """Lay the ink of a box of the picture on (96, 96) paper, aspect kept, centred."""
    height, width = ink.shape
    left, right = int(box[0] * width), max(round(box[2] * width), 1)
    top, bottom = int(box[1] * height), max(round(box[3] * height), 1)
    part = ink[min(top, bottom - 1) : bottom, min(left, right - 1) : right]
    scale = THUMB_PX / max(part.shape)
    size = [max(1, min(THUMB_PX, round(side * scale))) for side in part.shape]
    if scale < 0.5:
        part = images.shrink(part, size[1], size[0])
    else:
        part = cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR)
    y, x = (THUMB_PX - size[0]) // 2, (THUMB_PX - size[1]) // 2
    canvas[:] = 0
    canvas[y : y + size[0], x : x + size[1]] = part


def _choose_level(
    levels: list[np.ndarray], box: tuple[float, float, float, float]
) -> int:
    """The smallest in which the box is as large as an ink map; else the largest."""
    for at in range(len(levels) - 1, 0, -1):
        if _box_side(levels[at], box) >= THUMB_PX:
            return at
    return 0


def _box_side(level: np.ndarray, box: tuple[float, float, float, float]) -> float:
    height, width = level.shape
    return max((box[2] - box[0]) * width, (box[3] - box[1]) * height)


def _colourfulness(pixels: np.ndarray) -> float:
    """Hasler and Süsstrunk (2003) on 64 × 64 sampled pixels; 0 is grey."""
    if pixels.ndim == 2:
        return 0.0
    sample = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_NEAREST)
    blue, green, red = cv2.split(sample)
    if cv2.norm(red, green, cv2.NORM_INF) + cv2.norm(red, blue, cv2.NORM_INF) < 8:
        return 0.0  # three equal channels, but for rounding
    blue, green, red = cv2.split(sample.astype(np.float32))
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


def _text_band(level: np.ndarray, ground: tuple[int, int]) -> float:
    """Strokes per row of the busiest band of rows at the top or bottom edge.

    Lettering crosses many short strokes in each of a few neighbouring rows.
    """
    tall = round(0.18 * level.shape[0])
    if tall < 6 or level.shape[1] < 2:
        return 0.0
    inked = images.mark_ink(np.concatenate([level[:tall], level[-tall:]]), *ground)
    rises = cv2.subtract(inked[:, 1:], inked[:, :-1])  # never below 0
    strokes = cv2.reduce(rises, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).reshape(2, tall)
    four = np.minimum(strokes[:, 1:], strokes[:, :-1])
    four = np.minimum(four[:, 2:], four[:, :-2])  # the least of four rows
    return float(four.max())


def _view_hash(view: np.ndarray, seen: images.View) -> str:
    """A hash of the measured pixels; few pictures share it that are not the same."""
    sums = f"{zlib.crc32(np.ascontiguousarray(view).data):08x}"
    return f"{sums}-{seen.width:x}x{seen.height:x}/{seen.shrink}"


def whole_hash(pixels: np.ndarray) -> str:
    """A hash that pictures share only when all their pixels agree.

    Args:
        pixels: (H, W, 3) uint8 of the whole picture.
    """
    found = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
    return f"{found[:32]}-{pixels.shape[1]:x}x{pixels.shape[0]:x}"
