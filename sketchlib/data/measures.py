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
    from sketchlib.data import loops

    levels = images.halve([seen.grey()], VIEW_PX)
    view = loops.whole_rows(levels[-1])
    finer = loops.whole_rows(levels[max(len(levels) - 2, 0)])
    least, tall = min(view.shape), round(0.18 * finer.shape[0])
    ring, edge = max(1, round(0.03 * least)), max(1, round(0.06 * least))
    found = loops.look(view, finer, ring, edge, tall if tall >= 6 else 0)
    paper, contrast, brightness, ink = found[:4]
    box, (border, text) = found[4:8], found[8:]
    tone = _ink_curve(int(paper), int(contrast))
    record["width"], record["height"] = seen.width, seen.height
    record["brightness"], record["paper"] = brightness, paper
    record["contrast"], record["ink"] = contrast, ink
    for side, value in zip(("left", "top", "right", "bottom"), box, strict=True):
        record[f"ink_{side}"] = value
    record["colourfulness"] = _colourfulness(seen.stored)
    record["blur"] = _blur(view, int(contrast))
    record["border"], record["text_band"] = border, text
    thumbs = record["thumbs"]
    toned = {len(levels) - 1: cv2.LUT(view, tone)}
    for frame, canvas in zip((box, (0.0, 0.0, 1.0, 1.0)), thumbs, strict=True):
        at = _choose_level(levels, frame)
        if at not in toned:
            toned[at] = cv2.LUT(levels[at], tone)
        _ink_map(toned[at], frame, canvas)
    record["pixel_hash"] = _view_hash(view, seen)
    return levels


@lru_cache(4096)
def _ink_curve(paper: int, contrast: int) -> np.ndarray:
    """(256,) uint8 table from grey to ink; paper grain is 0, full ink 255.

    The root lifts faint and very thin lines to where they count beside black filling.
    """
    floor = 0.15 * max(contrast, _MIN_INK)
    depth = np.abs(_LEVELS - paper)
    ink = ((depth - floor) / max(contrast - floor, 1.0)).clip(0, 1)
    return (255 * np.sqrt(ink)).round().astype(np.uint8)


def _ink_map(ink: np.ndarray, box: tuple[float, ...], canvas: np.ndarray) -> None:
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


def _choose_level(levels: list[np.ndarray], box: tuple[float, ...]) -> int:
    """The smallest in which the box is as large as an ink map; else the largest."""
    for at in range(len(levels) - 1, 0, -1):
        if _box_side(levels[at], box) >= THUMB_PX:
            return at
    return 0


def _box_side(level: np.ndarray, box: tuple[float, ...]) -> float:
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
