"""Whether two small ink maps show the same drawing: align, then correlate.

The maps are aligned by OpenCV's ECC (Evangelidis and Psarakis 2008), at 48 px and
then at 96 px, and correlated after a band-pass whose strength is levelled, so that
neither white paper nor black filling counts as likeness, and a hairline counts as
much as a bold one. Surplus lettering and a different line weight are forgiven.
Limits: the rough position must be known to about a tenth of the side.
"""

import math
from collections.abc import Iterator

import cv2
import numpy as np

from sketchlib.data import measures

_MAX_STRETCH = 1.05  # a copy is not squeezed: ratio of the two scales
_MIN_COVER = 0.6  # share of the ink both frames must see
SURE = 0.99  # no further alignment is tried above this score
_SAME = 0.995  # correlation at 48 px that no pair below 0.98 at 96 px was seen to reach
_EVIDENT = 0.97  # correlation at 48 px from which the first fit may do as it is
_NEARBY = np.ones((5, 5), np.uint8)
_PEN = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_LETTER_PX = 8  # greatest height of lettering in a 96 px map
_HOPELESS = 0.8  # least correlation at 48 px before any alignment


def start_matrix(shift: np.ndarray, side_px: int) -> np.ndarray:
    """(2, 3) affine map at 96 px from a first-order fit at `side_px`.

    Args:
        shift: (6,) d/dx, d/dy, and the four parts of the linear change.
        side_px: side of the maps the fit was made on.
    """
    scale = measures.THUMB_PX / side_px
    centre = np.full(2, (measures.THUMB_PX - 1) / 2)
    dx, dy, xx, yy, xy, yx = shift
    half = side_px / 2
    linear = np.eye(2) + np.array([[xx, xy], [yx, yy]]) / half
    offset = centre + scale * np.array([dx, dy]) - linear @ centre
    return np.column_stack([linear, offset])


def _halved(matrix: np.ndarray) -> np.ndarray:
    """The same map for pictures of half the side (pixel centres kept)."""
    linear, offset = matrix[:, :2], matrix[:, 2]
    moved = (linear @ np.full(2, 0.5) + offset - 0.5) / 2
    return np.column_stack([linear, moved]).astype(np.float32)


def _doubled(matrix: np.ndarray) -> np.ndarray:
    linear, offset = matrix[:, :2], matrix[:, 2]
    moved = 2 * offset + 0.5 - linear @ np.full(2, 0.5)
    return np.column_stack([linear, moved]).astype(np.float32)


def _align(
    target: np.ndarray, moving: np.ndarray, start: np.ndarray, rounds: int
) -> np.ndarray:
    """The affine map that lays `moving` on `target`; `start` where ECC gives up."""
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, rounds, 1e-3)
    try:
        _, found = cv2.findTransformECC(
            target,
            moving,
            start.copy(),
            cv2.MOTION_AFFINE,
            stop,
            None,  # type: ignore[arg-type, call-overload]  # OpenCV allows no mask
            1,
        )
    except cv2.error:  # no convergence: the maps have too little in common
        return start
    return found


def _warp(ink: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(ink, matrix, ink.shape[::-1], flags=flags)


def _band(ink: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    """Ink between two scales, in pixels: lines and edges, neither paper nor filling."""
    return cv2.GaussianBlur(ink, (0, 0), fine) - _blur_broadly(ink, coarse)


def _blur_broadly(ink: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of three pixels or more, taken at half the size for speed.

    What halving and doubling blur by themselves is taken off the Gaussian's variance.
    """
    height, width = ink.shape
    size = (width // 2, height // 2)
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), math.sqrt(sigma * sigma - 0.75) / 2)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def level_lines(
    ink: np.ndarray, fine: float, coarse: float, floor: float = 0.05
) -> np.ndarray:
    """A band of the ink with its strength levelled: faint lines count as bold ones.

    Args:
        ink: (S, S) float32, S even.
        fine: lower end of the band, pixels.
        coarse: upper end of the band, pixels.
        floor: strength, as a share of the greatest, below which nothing is raised.
    """
    band = _band(ink, fine, coarse)
    strength = np.sqrt(_blur_broadly(band * band, coarse))
    return band / (strength + floor * strength.max() + 1e-6)


def _lines(ink: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    return level_lines(ink, sigma, 3 * sigma)


def _correlate(one: np.ndarray, two: np.ndarray) -> float:
    one, two = one.ravel(), two.ravel()
    size = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / size if size > 0 else 0.0


def compare_ink(
    target: np.ndarray, moving: np.ndarray, start: np.ndarray, least: float
) -> float:
    """Correlation (0-1) of two (96, 96) ink maps after affine alignment.

    Returns 0 as soon as it is clear that `least` is out of reach, or when the fit
    squeezes the drawing or leaves too much of its ink outside.
    """
    side = (measures.THUMB_PX // 2, measures.THUMB_PX // 2)
    halves = [
        cv2.resize(ink, side, interpolation=cv2.INTER_AREA).astype(np.float32)
        for ink in (target, moving)
    ]
    first = _halved(start)
    goal, laid = _lines(halves[0], 1.3), _warp(halves[1], first)
    likeness = _correlate(goal, _lines(laid, 1.3))
    if likeness < _HOPELESS - 0.03:
        return 0.0
    if likeness > _SAME > least and _is_fit(start) and _cover(laid, halves[1], start):
        return likeness
    whole = target.astype(np.float32), moving.astype(np.float32)
    if likeness > _EVIDENT:
        score = _score(*whole, start.astype(np.float32))
        if score > SURE:
            return score
    smooth = [cv2.GaussianBlur(half, (0, 0), 1.0) for half in halves]
    masses = _band(smooth[0], 1, 3), _band(_warp(smooth[1], first), 1, 3)
    if _correlate(*masses) < _HOPELESS:
        return 0.0
    matrix = _align(smooth[0], smooth[1], first, 20)
    if _stretch(matrix) > 1.5 * _MAX_STRETCH - 0.5:
        return 0.0
    if _correlate(goal, _lines(_warp(halves[1], matrix), 1.3)) < least - 0.09:
        return 0.0
    full = _doubled(matrix)
    score = _score(*whole, full)
    if least - 0.08 < score < SURE:
        smooth = [cv2.GaussianBlur(ink, (0, 0), 1.0) for ink in whole]
        score = max(score, _score(*whole, _align(smooth[0], smooth[1], full, 20)))
    return score


_SEEN = np.ones((measures.THUMB_PX, measures.THUMB_PX), np.float32)


def _stretch(matrix: np.ndarray) -> float:
    """How much more an affine map stretches one direction than the other, from 1."""
    a, b, c, d = matrix[:, :2].ravel().tolist()
    even, odd = math.hypot(a + d, c - b), math.hypot(a - d, b + c)
    return (even + odd) / max(abs(even - odd), 1e-6)


def _is_fit(matrix: np.ndarray) -> bool:
    """Whether an affine map is one that copies are made by."""
    return 0.25 < _area(matrix) < 4 and _stretch(matrix) <= _MAX_STRETCH


def _area(matrix: np.ndarray) -> float:
    a, b, c, d = matrix[:, :2].ravel().tolist()
    return abs(a * d - b * c)


def _cover(laid: np.ndarray, moving: np.ndarray, matrix: np.ndarray) -> bool:
    """Whether enough of the ink of `moving` is still in the frame, laid by `matrix`."""
    kept = float(laid.sum()) * _area(matrix)
    return kept >= _MIN_COVER * max(float(moving.sum()), 1.0)


def _score(target: np.ndarray, moving: np.ndarray, matrix: np.ndarray) -> float:
    """Band-passed correlation of aligned maps, line weights made alike; 0 if unfit."""
    if not _is_fit(matrix):
        return 0.0
    laid, seen = _warp(moving, matrix), _warp(_SEEN, matrix)
    shown = target * seen
    ink = float(laid.sum()), float(shown.sum())
    visible = ink[1] >= _MIN_COVER * max(float(target.sum()), 1.0)
    if not (visible and _cover(laid, moving, matrix)):
        return 0.0
    laid, shown = _unletter(laid, shown), _unletter(shown, laid)
    plain = _correlate(_lines(shown), _lines(laid))
    ratio = ink[0] / ink[1]
    if 0.85 < ratio < 1.18 or plain < 0.7:
        return plain
    thin, thick = (laid, shown) if ratio < 1 else (shown, laid)
    goal = _lines(thick)
    return max([plain, *(_correlate(_lines(ink), goal) for ink in _widened(thin))])


def _widened(thin: np.ndarray) -> Iterator[np.ndarray]:
    """The ink as a broader pen would have drawn it, in steps of a fraction of a pixel.

    Dilation widens lines and leaves discs nearly as they were; a blur stands for pens
    whose lines are still under a pixel here.
    """
    grown = cv2.dilate(thin, _PEN) - thin
    yield from (thin + share * grown for share in (0.35, 0.7, 1.0))
    yield from (cv2.GaussianBlur(thin, (0, 0), sigma) for sigma in (0.8, 1.4))


def _unletter(ink: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`ink` without a line of lettering that `other` has nothing near to."""
    near = cv2.dilate(other, _NEARBY) > 0.1 * other.max()
    extra = np.where(near, np.float32(0), ink)
    surplus = float(extra.sum())
    if not 0.01 < surplus / max(float(ink.sum()), 1.0) < 0.5:
        return ink
    if _is_lettering(extra, surplus) or _is_lettering(extra.T, surplus):
        return ink - extra
    return ink


def _is_lettering(extra: np.ndarray, surplus: float) -> bool:
    """One narrow band of rows holds it, long, dense and of uneven strength."""
    rows = np.cumsum(np.concatenate([[0.0], extra.sum(axis=1)]))
    inside = rows[_LETTER_PX:] - rows[:-_LETTER_PX]
    top = int(inside.argmax())
    if inside[top] < 0.9 * surplus:
        return False
    line = extra[top : top + _LETTER_PX].sum(axis=0)
    inked = np.flatnonzero(line > 0.2 * line.max())
    first, last = int(inked[0]), int(inked[-1]) + 1
    if last - first < 1.6 * _LETTER_PX or len(inked) < 0.6 * (last - first):
        return False
    inner = line[first + 1 : last - 1]
    return float(np.abs(np.diff(inner)).mean()) > 0.1 * float(inner.mean())
