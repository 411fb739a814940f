"""Loops over the pixels of one picture, compiled by numba.

What takes OpenCV and numpy a dozen calls and a dozen readings of the same pixels is
one call here, in a third of the time; `measures` and `cache` say what is measured.
To import this module compiles it (seconds, once for an installation) or reads what
was compiled (a third of a second), so it is imported where pictures are read and,
before a pass, by the process that forks.
Limits: grey uint8 pictures that lie row by row; see `whole_rows`.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

_PIXELS = "u1[:, ::1]"
_MIN_INK = 20  # grey levels between paper and the faintest ink


def _compiled(signature: str) -> Callable[[Callable], Callable]:
    """Numba's `njit`, kept beside this file or in the user's cache where possible."""

    def compile_one(loop: Callable) -> Callable:
        try:
            return njit(signature, cache=True)(loop)
        except RuntimeError:  # no folder to keep it in: every process compiles
            return njit(signature)(loop)

    return compile_one


def whole_rows(grey: np.ndarray) -> np.ndarray:
    """`grey` as the loops take it: a copy where it is a part of something else."""
    flags = grey.flags
    return grey if flags.c_contiguous and flags.writeable else grey.copy(order="C")


@_compiled(f"i8({_PIXELS}, i8, i8)")
def ring_level(grey: np.ndarray, inset: int, wide: int) -> int:
    """The lower median of a ring of pixels, 0-255; its corners count twice.

    Args:
        grey: (H, W) uint8.
        inset: pixels between the edge and the ring; less than half of each side.
        wide: of the ring, pixels.
    """
    height, width = grey.shape
    bottom, right = height - inset, width - inset
    tall, broad = min(wide, bottom - inset), min(wide, right - inset)
    counts = np.zeros(256, np.int64)
    for y in range(inset, bottom):
        for x in range(inset, inset + broad):
            counts[grey[y, x]] += 1
        for x in range(right - broad, right):
            counts[grey[y, x]] += 1
    for y in range(inset, inset + tall):
        for x in range(inset, right):
            counts[grey[y, x]] += 1
    for y in range(bottom - tall, bottom):
        for x in range(inset, right):
            counts[grey[y, x]] += 1
    total = 2 * (broad * (bottom - inset) + tall * (right - inset))
    seen = 0
    for level in range(256):
        seen += counts[level]
        if 2 * seen >= total:
            return level
    return 255


@njit
def _count_levels(grey: np.ndarray) -> np.ndarray:
    """(256,) pixels of each level; four counts by turns do not wait for each other."""
    four = np.zeros((4, 256), np.int32)
    flat = grey.ravel()
    whole = len(flat) // 4 * 4
    for at in range(0, whole, 4):
        four[0, flat[at]] += 1
        four[1, flat[at + 1]] += 1
        four[2, flat[at + 2]] += 1
        four[3, flat[at + 3]] += 1
    for at in range(whole, len(flat)):
        four[0, flat[at]] += 1
    counts = np.zeros(256, np.int64)
    for level in range(256):
        for part in range(4):
            counts[level] += four[part, level]
    return counts


@njit
def _count_near(counts: np.ndarray, level: int) -> int:
    """Pixels within the faintest ink's distance of a level."""
    total = 0
    for near in range(max(0, level - _MIN_INK), min(255, level + _MIN_INK) + 1):
        total += counts[near]
    return total


@njit
def _paper_level(grey: np.ndarray, counts: np.ndarray, wide: int) -> int:
    """Grey level of the ground: the median of a ring along the edge.

    Where a ring further in says otherwise (a frame, a scanner's rim), the level that
    more of the picture has decides.

    Args:
        grey: (H, W) uint8.
        counts: of `_count_levels`.
        wide: of the ring, pixels.
    """
    outer = ring_level(grey, 0, wide)
    share = _count_near(counts, outer)
    if 2 * share > grey.size or min(grey.shape) <= 6 * wide:
        return outer  # no other level can have more of the picture
    inner = ring_level(grey, 3 * wide, wide)
    if abs(inner - outer) <= 2 * _MIN_INK or share >= _count_near(counts, inner):
        return outer
    return inner


@njit
def _sum_ink(
    rows: np.ndarray, columns: np.ndarray, grey: np.ndarray, low: int, high: int
) -> None:
    """Add the pixels below `low` or above `high` up, by row (H,) and column (W,)."""
    height, width = grey.shape
    for y in range(height):
        total = 0
        for x in range(width):
            ink = (grey[y, x] < low) | (grey[y, x] > high)
            columns[x] += np.int32(ink)
            total += int(ink)
        rows[y] = total


@njit
def _find_span(sums: np.ndarray) -> tuple[float, float]:
    """First and last of what holds all but 0.2 % at each end, as shares."""
    total = 0
    for value in sums:
        total += value
    if total == 0:
        return 0.0, 1.0
    speck, seen, first, last = 0.002 * total, 0, -1, -1
    for at in range(len(sums)):
        seen += sums[at]
        if first < 0 and seen > speck:
            first = at
        if last < 0 and seen >= total - speck:
            last = at
    return first / len(sums), min(last + 1, len(sums)) / len(sums)


@njit
def _most_of_edge(sums: np.ndarray, wide: int) -> int:
    """The greatest sum within `wide` of one end, of that end where it is less."""
    first, last = 0, 0
    for at in range(min(wide, len(sums))):
        first = max(first, sums[at])
        last = max(last, sums[len(sums) - 1 - at])
    return min(first, last)


@njit
def _count_strokes(grey: np.ndarray, tall: int, low: int, high: int) -> int:
    """Strokes that each of four neighbouring rows crosses, at most; see `measures`.

    Args:
        grey: (H, W) uint8.
        tall: rows at the top and at the bottom that are looked at.
        low: greys below are ink,
        high: and greys above.
    """
    height, width = grey.shape
    best = 0
    for top in (0, height - tall):
        before = np.zeros(3, np.int64)
        for y in range(top, top + tall):
            rises = 0
            for x in range(1, width):
                inked = (grey[y, x] < low) | (grey[y, x] > high)
                left = (grey[y, x - 1] < low) | (grey[y, x - 1] > high)
                rises += int(inked & (not left))
            if y >= top + 3:
                best = max(best, min(rises, before.min()))
            before[(y - top) % 3] = rises
    return best


@_compiled(f"UniTuple(f8, 10)({_PIXELS}, {_PIXELS}, i8, i8, i8)")
def look(
    grey: np.ndarray, finer: np.ndarray, ring: int, edge: int, tall: int
) -> tuple[float, ...]:
    """All that `measures.measure_view` reckons from grey levels alone.

    Args:
        grey: (H, W) uint8, what is measured.
        finer: the same picture at up to twice the side, for lettering.
        ring: width of the ring that tells the paper, pixels.
        edge: how near to an edge a frame line is, pixels.
        tall: rows of `finer` at each end that lettering is sought in; 0 for none.
    Returns:
        paper, contrast, brightness, ink; left, top, right, bottom of the ink box;
        border, text: as `measures.MEASURES` has them.
    """
    height, width = grey.shape
    counts = _count_levels(grey)
    paper = _paper_level(grey, counts, ring)
    brightness, total = 0, grey.size
    depths = np.zeros(256, np.int64)
    for level in range(256):
        brightness += level * counts[level]
        depths[abs(level - paper)] += counts[level]
    enough, seen, contrast = min(max(8, total // 1000), total), 0, 0
    for depth in range(255, -1, -1):
        seen += depths[depth]
        if seen >= enough:
            contrast = depth
            break
    step = int(max(float(_MIN_INK), 0.3 * contrast))
    ink = depths[step + 1 :].sum()
    low, high = max(paper - step, 0), min(paper + step, 255)
    rows, columns = np.zeros(height, np.int32), np.zeros(width, np.int32)
    _sum_ink(rows, columns, grey, low, high)
    left, right = _find_span(columns)
    top, bottom = _find_span(rows)
    border, middle = 0.0, 0
    for y in range(min(edge, height)):
        level = grey[y, width // 2]
        middle += int((level < low) | (level > high))
    if middle > 0:  # a line does cross the middle of the top edge
        along, down = _most_of_edge(rows, edge), _most_of_edge(columns, edge)
        border = min(along / width, down / height)
    text = _count_strokes(finer, tall, low, high) if tall > 0 else 0
    return (
        float(paper), float(contrast), brightness / total, ink / total,
        left, top, right, bottom, border, float(text),
    )  # fmt: skip


@_compiled(f"UniTuple(i8, 5)({_PIXELS}, i8, i8[:, ::1])")
def find_drawing(
    grey: np.ndarray, ring: int, papers: np.ndarray
) -> tuple[int, int, int, int, int]:
    """The paper's level, and the box around what is not paper.

    Args:
        grey: (H, W) uint8.
        ring: width of the ring that tells the paper, pixels.
        papers: (256, 2) for each level of the paper the least and the greatest grey
            that is still paper.
    Returns:
        level; first row of the box and the one after its last, then its columns; the
        whole picture where no row or no column has two pixels of ink.
    """
    height, width = grey.shape
    paper = ring_level(grey, 0, ring)
    rows, columns = np.zeros(height, np.int32), np.zeros(width, np.int32)
    _sum_ink(rows, columns, grey, papers[paper, 0], papers[paper, 1])
    top, bottom, left, right = -1, -1, -1, -1
    for y in range(height):
        if rows[y] >= 2:
            top, bottom = y if top < 0 else top, y + 1
    for x in range(width):
        if columns[x] >= 2:
            left, right = x if left < 0 else left, x + 1
    if top < 0 or left < 0:
        return paper, 0, height, 0, width
    return paper, top, bottom, left, right
