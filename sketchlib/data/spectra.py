"""Low frequencies of ink maps: which pairs may be one drawing, in any orientation.

A flip only changes the sign of odd frequencies and a transpose swaps them. What no
orientation changes, such as the sum of a frequency even in both directions and its
mirror image, makes a sieve: its products are never less than those of the
frequencies in the best orientation, and one product of matrices leaves a few in
a thousand pairs, whose best orientation is then worked out.
Limits: free rotations up to about 15°, by comparing with turned maps.
"""

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from sketchlib.data import passes

# (transpose, flip top to bottom, flip left to right), in this order
STEPS = list(itertools.product((False, True), repeat=3))
SMALL_PX = 32  # side at which frequencies are taken
_SIEVED = 8  # frequencies per side that the sieve looks at
_BLOCK, _WIDE = 512, 1024  # pictures compared with pictures at a time
_FEW = 64  # maps worked on at a time: they stay in the processor's cache
_FIRST_STRETCH = 1.12  # greatest ratio of the two scales in the rough first fit


@dataclass(frozen=True)
class Frame:
    """One of the views of a picture and what makes a candidate in it.

    Attributes:
        index: position in the ink maps, as in `measures.FRAMES`.
        waves: frequencies per side; even.
        cosine: least cosine of the frequencies, best orientation.
        tangent: least cosine after the first-order fit.
        sieve: least product of the invariants.
        angle: degrees the second picture is turned by before it is compared.
    """

    index: int
    waves: int
    cosine: float
    tangent: float
    sieve: float
    angle: float = 0.0


BOX = Frame(0, 8, cosine=0.75, tangent=0.92, sieve=0.82)
FULL = Frame(1, 12, cosine=0.80, tangent=0.90, sieve=0.87)
LEFT = Frame(1, 12, cosine=0.77, tangent=0.88, sieve=0.86, angle=9.0)
RIGHT = replace(LEFT, angle=-9.0)
FRAMES = (BOX, FULL, LEFT, RIGHT)


@dataclass(frozen=True)
class Spectra:
    """One frame of every picture.

    Attributes:
        small: (N, 32, 32) uint8 maps, not turned by the frame's angle.
        unit: (N, W, W) float32 frequencies, length 1, without the mean.
        frame: which view.
    """

    small: np.ndarray
    unit: np.ndarray
    frame: Frame


@dataclass(frozen=True)
class Candidates:
    """Pairs to verify: rows, orientation of j that fits i, likeness, first fit."""

    i: np.ndarray
    j: np.ndarray
    orientation: np.ndarray
    tangent: np.ndarray
    shift: np.ndarray  # (M, 6)
    frame: np.ndarray  # number in FRAMES


# --- maps and frequencies ---------------------------------------------------------


def shrink_maps(
    thumbs: np.ndarray, rows: np.ndarray, index: int, pool: ThreadPoolExecutor
) -> np.ndarray:
    """(n, 32, 32) uint8 of one frame of some of (N, 2, 96, 96) ink maps."""
    small = np.empty((len(rows), SMALL_PX, SMALL_PX), np.uint8)

    def shrink(part: slice) -> None:
        stacked = thumbs[rows[part], index].reshape(-1, thumbs.shape[-1])
        size = (SMALL_PX, SMALL_PX * (part.stop - part.start))
        cv2.resize(
            stacked, size, small[part].reshape(size[::-1]), interpolation=cv2.INTER_AREA
        )  # a whole ratio: no map reaches into the next

    list(pool.map(shrink, _parts(len(rows), _FEW)))
    return small


def _parts(total: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]


def make_spectra(
    small: np.ndarray, frames: Sequence[Frame], pool: ThreadPoolExecutor
) -> list[Spectra]:
    """Frequencies of shrunk maps, turned by each frame's angle.

    Args:
        small: (N, 32, 32) uint8 as of `shrink_maps`.
        frames: the views; their lines are levelled once for all.
        pool: threads that share the work.
    """
    units = [np.empty((len(small), f.waves, f.waves), np.float32) for f in frames]

    def transform(part: slice) -> None:
        maps = _level_all(small[part]).reshape(part.stop - part.start, -1)
        for frame, unit in zip(frames, units, strict=True):
            found = maps @ _wave_matrix(frame.waves, frame.angle)
            found[:, 0] = 0  # the mean: how much ink, not which
            unit[part] = _normalise(found).reshape(-1, frame.waves, frame.waves)

    list(pool.map(transform, _parts(len(small), _FEW)))
    return [
        Spectra(small, unit, frame) for frame, unit in zip(frames, units, strict=True)
    ]


@lru_cache
def _wave_matrix(waves: int, angle_deg: float) -> np.ndarray:
    """(S·S, W·W) float32: turning a map about its centre, then its frequencies."""
    basis = _dct_basis(SMALL_PX, waves)
    points = np.eye(SMALL_PX * SMALL_PX, dtype=np.float32)
    maps = _turn_maps(points.reshape(-1, SMALL_PX, SMALL_PX), angle_deg)
    return _both_sides(maps, basis).reshape(len(points), waves * waves)


def _turn_maps(maps: np.ndarray, angle_deg: float) -> np.ndarray:
    if angle_deg == 0:
        return maps
    centre = ((SMALL_PX - 1) / 2, (SMALL_PX - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle_deg, 1.0)
    size = (SMALL_PX, SMALL_PX)
    return np.stack([cv2.warpAffine(one, matrix, size) for one in maps])


def _blur_matrix(sigma: float) -> np.ndarray:
    """(S, S) float32: a Gaussian along one side as a product of matrices."""
    taps = round(sigma * 8 + 1) | 1  # as OpenCV chooses for float32
    eye = np.eye(SMALL_PX, dtype=np.float32)
    return cv2.GaussianBlur(eye, (1, taps), sigmaX=sigma, sigmaY=sigma)


_FINE, _COARSE, _FLOOR = _blur_matrix(0.7), _blur_matrix(3.0), 0.1


def _level_all(small: np.ndarray) -> np.ndarray:
    """`alignment.level_lines` of many maps: a black disc drowns nothing."""
    maps = small.astype(np.float32)
    band = _both_sides(maps, _FINE) - _both_sides(maps, _COARSE)
    strength = np.sqrt(np.maximum(_both_sides(band * band, _COARSE), 0))
    floor = _FLOOR * strength.max(axis=(1, 2), keepdims=True) + 1e-6
    return band / (strength + floor)


def _both_sides(maps: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(n, S, S) → (n, W, W): `matrix` (W, S) along rows and columns."""
    total, side = maps.shape[:2]
    across = maps.reshape(-1, side) @ matrix.T
    waves = len(matrix)
    turned = across.reshape(total, side, waves).swapaxes(1, 2).reshape(-1, side)
    both = (turned @ matrix.T).reshape(total, waves, waves)
    return both.swapaxes(1, 2)


def _dct_basis(side: int, waves: int) -> np.ndarray:
    """(W, S) float32 orthonormal cosines."""
    angle = np.pi * np.arange(waves)[:, None] * (np.arange(side) + 0.5) / side
    basis = np.cos(angle) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def _normalise(spectra: np.ndarray) -> np.ndarray:
    """(N, ...) copies of length 1."""
    flat = spectra.reshape(len(spectra), -1)
    length = np.maximum(np.sqrt(np.einsum("nk,nk->n", flat, flat)), 1e-6)
    return (flat / length[:, None]).reshape(spectra.shape)


# --- the search over all pairs ------------------------------------------------------


def invariants(unit: np.ndarray, waves: int) -> np.ndarray:
    """(N, K) float32 of length 1, the same for all orientations of a picture.

    Of two pictures, the product of these is never less than that of the lowest `waves`
    by `waves` frequencies in the best orientation. A frequency (r, c) goes with its
    mirror image (c, r). Where both are even, flips change nothing and a transpose only
    the sign of their difference; where both are odd, the two change sign together;
    where one is odd, strengths are left, sorted (rearrangement inequality).
    """
    low = _normalise(unit[:, :waves, :waves])
    r, c = np.triu_indices(waves)
    odd = r % 2 + c % 2
    one, two = low[:, r, c], low[:, c, r]
    both = np.where(r == c, one, (one + two) * np.float32(np.sqrt(0.5)))
    apart = np.abs(one - two) * np.float32(np.sqrt(0.5))
    strong, weak = np.abs(one[:, odd == 1]), np.abs(two[:, odd == 1])
    parts = [
        both[:, odd == 0],
        np.abs(both[:, odd == 2]),
        apart[:, (odd != 1) & (r != c)],
        np.maximum(strong, weak),
        np.minimum(strong, weak),
    ]
    return np.concatenate(parts, axis=1)


def _by_parity(unit: np.ndarray) -> np.ndarray:
    """(N, 4, ·): even/odd rows × even/odd columns of the frequencies."""
    parts = [unit[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.stack([part.reshape(len(unit), -1) for part in parts], axis=1)


def _best_of_flips(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(n,) best cosine over the four flips of rows as of `_by_parity`."""
    both, across, down, turned = np.einsum("npk,npk->pn", one, two)
    straight = both + turned + np.abs(across + down)
    return np.maximum(straight, both - turned + np.abs(across - down))


def find_candidates(
    unit: np.ndarray, others: np.ndarray, frame: Frame, pool: ThreadPoolExecutor
) -> np.ndarray:
    """(M, 2) rows i < j: i of `unit` is like j of `others` in some orientation."""
    one, two = (invariants(part, _SIEVED) for part in (unit, others))
    parts = _by_parity(unit)
    sides = _by_parity(others), _by_parity(others.swapaxes(1, 2))
    total = len(unit)
    room = _Room()

    def compare(top: int) -> list[np.ndarray]:
        """One strip of the table, block by block."""
        strip = one[top : top + _BLOCK]
        found = []
        for left in range(top, total, _WIDE):
            i, j = room.products_above(strip, two[left : left + _WIDE], frame.sieve)
            i, j = i + top, j + left
            i, j = i[i < j], j[i < j]
            best = [_best_of_flips(parts[i], side[j]) for side in sides]
            kept = np.maximum(*best) >= frame.cosine
            found.append(np.column_stack([i[kept], j[kept]]).astype(np.int32))
        return found

    strips = pool.map(compare, range(0, total, _BLOCK))
    return np.concatenate([block for strip in strips for block in strip])


class _Room(threading.local):
    """Memory of a thread for one block; new pages cost two threads a sixth more."""

    def __init__(self) -> None:
        self.products = np.empty(_BLOCK * _WIDE, np.float32)
        self.above = np.empty(_BLOCK * _WIDE, bool)

    def products_above(
        self, one: np.ndarray, two: np.ndarray, least: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where rows of (n, K) and of (m, K) have a product of at least `least`."""
        shape = len(one), len(two)
        products = self.products[: shape[0] * shape[1]]
        above = self.above[: len(products)]
        np.matmul(one, two.T, out=products.reshape(shape))
        np.greater_equal(products, least, out=above)
        i, j = np.divmod(np.flatnonzero(above), shape[1])  # argwhere is far slower
        return i, j


def compare_all(unit: np.ndarray, others: np.ndarray, frame: Frame) -> np.ndarray:
    """(M, 2) rows i < j of (N, W, W) unit spectra alike in some orientation."""
    with passes.one_thread_each(0) as pool, threadpool_limits(1):
        return find_candidates(unit, others, frame, pool)


# --- the first-order fit ------------------------------------------------------------


def oriented(unit: np.ndarray) -> np.ndarray:
    """(n, W, W) → (8, n, W·W): the frequencies of each orientation."""
    sign = (-1.0) ** np.arange(unit.shape[-1], dtype=np.float32)
    turned = []
    for swap, down, across in STEPS:
        block = unit.swapaxes(1, 2) if swap else unit
        block = block * (sign[:, None] if down else 1) * (sign if across else 1)
        turned.append(block.reshape(len(unit), -1))
    return np.stack(turned)


def fit_tangents(
    seen: Spectra, others: Spectra, pairs: np.ndarray, pool: ThreadPoolExecutor
) -> list[Candidates]:
    """The pairs, with their orientations, that the first-order fit keeps.

    Args:
        seen: the first pictures, not turned.
        others: the second pictures; its frame decides what is kept.
        pairs: (M, 2) rows.
        pool: threads that share the work.
    """

    def fit(part: slice) -> list[Candidates]:
        i, j = pairs[part].T
        turned = oriented(others.unit[j])  # (8, n, W·W)
        flat = seen.unit[i].reshape(len(i), -1)
        cosines = np.einsum("onk,nk->on", turned, flat)
        cosines[0] += 0.005  # of equals, upright is the plain answer
        order, found = np.argsort(cosines, axis=0), []
        for o in (order[-1], order[-2]):
            close = np.take_along_axis(cosines, o[None], 0)[0] >= others.frame.cosine
            chosen = np.flatnonzero(close)
            which, target = (i[chosen], j[chosen], o[chosen]), turned[o[chosen], chosen]
            found.append(project(seen, which, target, others.frame))
        return found

    done = pool.map(fit, _parts(len(pairs), _BLOCK))
    return [candidates for part in done for candidates in part]


def _tangents(small: np.ndarray, waves: int) -> np.ndarray:
    """(n, 7, W·W): frequencies of the maps and of d/dx, d/dy, and those times x, y."""
    basis = _dct_basis(SMALL_PX, waves)
    place = (np.arange(SMALL_PX) - (SMALL_PX - 1) / 2) / (SMALL_PX / 2)
    step = (np.eye(SMALL_PX, k=1) - np.eye(SMALL_PX, k=-1)) / 2
    step[[0, -1]] = 0
    slope, scaled, bent = basis @ step, basis * place, (basis * place) @ step
    # (left, right) of left @ map @ right.T, field by field
    fields = [
        (basis, basis),
        (basis, slope),
        (slope, basis),
        (basis, bent),
        (bent, basis),
        (scaled, slope),
        (slope, scaled),
    ]
    found = np.empty((len(small), 7, waves, waves), np.float32)
    for number, (left, right) in enumerate(fields):
        across = small @ right.T.astype(np.float32)  # (n, S, W)
        found[:, number] = left.astype(np.float32) @ across
    found[:, :, 0, 0] = 0
    return found.reshape(len(small), 7, waves * waves)


def project(
    seen: Spectra,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    target: np.ndarray,
    frame: Frame,
) -> Candidates:
    """Those of (i, j, orientation) whose `target` the tangents at i explain."""
    i, j, orientation = pairs
    which, back = np.unique(i, return_inverse=True)
    fields = _tangents(_level_all(seen.small[which]), frame.waves)
    gram = fields @ fields.swapaxes(1, 2)
    trace = np.trace(gram, axis1=1, axis2=2)[:, None, None] / 7 + 1e-6
    inverse = np.linalg.inv(gram + 1e-3 * trace * np.eye(7, dtype=np.float32))
    along = np.einsum("ntk,nk->nt", fields[back], target)  # (n, 7)
    weight = np.einsum("nst,nt->ns", inverse[back], along)
    explained = np.sqrt(np.maximum((weight * along).sum(axis=1), 0))
    shift = weight[:, 1:] / np.where(np.abs(weight[:, :1]) < 1e-9, 1, weight[:, :1])
    bent = np.eye(2) + shift[:, [[2, 4], [5, 3]]] / (SMALL_PX / 2)
    scales = np.linalg.svd(bent, compute_uv=False)
    straight = scales[:, 0] <= _FIRST_STRETCH * scales[:, 1]
    kept = (explained >= frame.tangent) & (straight | (frame.tangent < 0))
    return Candidates(
        i[kept],
        j[kept],
        orientation[kept],
        explained[kept],
        shift[kept],
        np.full(int(kept.sum()), _number(frame)),
    )


def _number(frame: Frame) -> int:
    return [(f.index, f.angle) for f in FRAMES].index((frame.index, frame.angle))


def unlimited(spectra: Spectra) -> Spectra:
    """The same with every pair let through to verification."""
    return replace(spectra, frame=replace(spectra.frame, cosine=-2.0, tangent=-1.0))
