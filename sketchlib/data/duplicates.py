"""Copies of one drawing, in any of eight orientations: candidates, then proof.

Candidates come from low-frequency DCT vectors of two frames, the ink box (finds
crops and margins) and the whole picture (finds added text), compared under the four
flips and the transpose at once: a flip only changes the sign of odd frequencies.
A first-order fit of shift, turn and scale (tangent distance, Simard et al. 1993)
leaves few pairs, and those are proved on their pixels by `alignment`.
Limits: free rotations up to about 15°; mirrored or turned copies of a symmetrical
drawing may be called near. Pictures flagged blank or unreadable never pair, and those
with under 0.2 % of ink only when their pixels are the same. Each picture has its 40
most promising candidates tried, so of a larger set only part of the pairs is listed.
"""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from sketchlib.data import alignment, audit, measures, passes

# (transpose, flip top to bottom, flip left to right), in this order
_STEPS = list(itertools.product((False, True), repeat=3))
ORIENTATIONS = (
    "near",
    "hflip",
    "vflip",
    "rot180",
    "transpose",
    "rot270",
    "rot90",
    "transverse",
)
KINDS = ("bytes", "pixels", *ORIENTATIONS)
PAIR_COLUMNS = ["image_id_a", "image_id_b", "kind", "score"]
_INVERSE = np.array([0, 1, 2, 3, 4, 6, 5, 7])  # of each orientation

_SMALL_PX = 32  # side at which frequencies are taken
_BLOCK = 512
_LEAST_INK = 0.002  # share; with less, a speck is all there is to compare
_MOST_LINKED = 40  # members of a set whose every pair is checked
_MOST_EXACT = 40  # larger sets of identical files are listed against their first
_MOST_TRIED = 40  # candidates verified for each picture
_FIRST_STRETCH = 1.12  # greatest ratio of the two scales in the rough first fit

_Match = tuple[int, int, int, float]  # i, j, orientation, score


@dataclass(frozen=True)
class Frame:
    """One of the two views of a picture and what makes a candidate in it.

    Attributes:
        index: position in the ink maps, as in `audit.FRAMES`.
        waves: frequencies per side.
        cosine: least cosine of the DCT vectors, best orientation.
        tangent: least cosine after the first-order fit.
        angle: degrees the second picture is turned by before it is compared.
    """

    index: int
    waves: int
    cosine: float
    tangent: float
    angle: float = 0.0


BOX = Frame(index=0, waves=8, cosine=0.75, tangent=0.92)
FULL = Frame(index=1, waves=12, cosine=0.80, tangent=0.90)
LEFT = Frame(index=1, waves=12, cosine=0.77, tangent=0.88, angle=9.0)
RIGHT = Frame(index=1, waves=12, cosine=0.77, tangent=0.88, angle=-9.0)
FRAMES = (BOX, FULL, LEFT, RIGHT)


def turn(pixels: np.ndarray, kind: str) -> np.ndarray:
    """A view of (H, W, …) `pixels` in the orientation `kind`; others stay as they are.

    `rot90` is a quarter turn counter-clockwise, as numpy's; `transpose` swaps rows
    and columns, `transverse` does so about the other diagonal.
    """
    if kind not in ORIENTATIONS:
        return pixels
    swap, down, across = _STEPS[ORIENTATIONS.index(kind)]
    turned = pixels.swapaxes(0, 1) if swap else pixels
    return turned[:: -1 if down else 1, :: -1 if across else 1]


def inverse_kind(kind: str) -> str:
    """The kind that turns b into a when `kind` turns a into b."""
    return {"rot90": "rot270", "rot270": "rot90"}.get(kind, kind)


def compose_kinds(first: str, second: str) -> str:
    """The kind of turning by `first` and then by `second`; never bytes or pixels."""
    return ORIENTATIONS[_PRODUCT[_orientation(first), _orientation(second)]]


def _orientation(kind: str) -> int:
    return ORIENTATIONS.index(kind) if kind in ORIENTATIONS else 0


def _compositions() -> np.ndarray:
    """(8, 8) orientation that results from the first, then the second."""
    probe = np.arange(9).reshape(3, 3)
    name = {turn(probe, kind).tobytes(): o for o, kind in enumerate(ORIENTATIONS)}
    return np.array(
        [
            [name[turn(turn(probe, one), two).tobytes()] for two in ORIENTATIONS]
            for one in ORIENTATIONS
        ]
    )


_PRODUCT = _compositions()


def find_pairs(
    findings: pd.DataFrame,
    thumbs: np.ndarray,
    *,
    threshold: float = 0.97,
    candidates: pd.DataFrame | None = None,
    workers: int = 0,
) -> pd.DataFrame:
    """Pairs of pictures that show the same drawing.

    Args:
        findings: rows of `audit.inspect`.
        thumbs: (N, 2, 96, 96) its ink maps, row by row.
        threshold: least correlation (0-1) of aligned, band-passed ink.
        candidates: further `image_id_a, image_id_b` to check, for instance
            neighbours by a model's features.
        workers: threads; 0 means one for each core.
    Returns:
        `image_id_a, image_id_b, kind, score`: turning a by `kind` gives b; a stands
        before b in `findings`; score is 1 for bytes and pixels.
    Raises:
        ValueError: findings and thumbs are of different lengths.
    """
    if len(findings) != len(thumbs):
        raise ValueError(
            f"`thumbs` should have one row per finding, but {len(thumbs)} came for "
            f"{len(findings)} findings; take both from one `audit.inspect`"
        )
    usable = ~(audit.flagged(findings, "blank") | audit.flagged(findings, "unreadable"))
    rows = np.flatnonzero(usable)
    exact = _exact_sets(findings, rows)
    ink = findings["ink"].to_numpy()
    first = np.array([row for row in np.unique(exact) if ink[row] >= _LEAST_INK], int)
    search = _Search(thumbs, first, threshold, workers)
    extra = _extra_pairs(candidates, findings, exact, first)
    near = search.run(extra)
    return _as_table(findings, rows, exact, near)


# --- exact copies ---------------------------------------------------------------


def _exact_sets(findings: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """For each of `rows`, the first row with the same pixels (or the same bytes)."""
    part = findings.iloc[rows]
    first = pd.Series(rows, index=part.index)
    by_pixels = first.groupby(part["pixel_hash"]).transform("min")
    return by_pixels.groupby(part["sha256"]).transform("min").to_numpy()


def _exact_pairs(rows: np.ndarray, exact: np.ndarray) -> Iterator[tuple[int, int]]:
    """All pairs inside each set; of a large set, its first row with every other."""
    for _, members in pd.Series(rows).groupby(exact):
        if len(members) <= _MOST_EXACT:
            yield from itertools.combinations(members, 2)
        else:
            yield from ((members.iloc[0], other) for other in members.iloc[1:])


def _as_table(
    findings: pd.DataFrame,
    rows: np.ndarray,
    exact: np.ndarray,
    near: Iterable[_Match],
) -> pd.DataFrame:
    """Exact pairs, and near pairs for every member of the sets they join."""
    sha = findings["sha256"].to_numpy()
    members = pd.Series(rows).groupby(exact).agg(list).to_dict()
    found = [
        (a, b, "bytes" if sha[a] == sha[b] else "pixels", 1.0)
        for a, b in _exact_pairs(rows, exact)
    ]
    for i, j, orientation, score in near:
        kinds = ORIENTATIONS[orientation], ORIENTATIONS[_INVERSE[orientation]]
        for a, b in itertools.product(members[i], members[j]):
            kind = kinds[0] if a < b else kinds[1]
            found.append((min(a, b), max(a, b), kind, round(score, 4)))
            if len(members[i]) * len(members[j]) > _MOST_EXACT:
                break
    found.sort()
    ids = findings["image_id"].to_numpy()
    table = pd.DataFrame(found, columns=PAIR_COLUMNS)
    for column in PAIR_COLUMNS[:2]:
        table[column] = ids[table[column].to_numpy(dtype=np.int64)]
    return table


def _extra_pairs(
    candidates: pd.DataFrame | None,
    findings: pd.DataFrame,
    exact: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """(M, 2) positions in `first` of the pairs a caller asks to check."""
    if candidates is None or candidates.empty:
        return np.empty((0, 2), np.int64)
    usable = np.flatnonzero(
        ~(audit.flagged(findings, "blank") | audit.flagged(findings, "unreadable"))
    )
    place = pd.Series(np.arange(len(first)), index=first).reindex(exact)
    stands_for = pd.Series(place.to_numpy(), index=findings["image_id"].iloc[usable])
    known = candidates[PAIR_COLUMNS[:2]].apply(lambda ids: ids.map(stands_for))
    pairs = np.sort(known.dropna().to_numpy().astype(np.int64), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


# --- candidates -----------------------------------------------------------------


@dataclass(frozen=True)
class _Spectra:
    """DCT of one frame of every picture.

    Attributes:
        unit: (N, W, W) float32, length 1, without the mean.
        tangents: (N, 7, W·W) float32: the picture and its change under shifts,
            scales and shears.
        inverse: (N, 7, 7) inverse of the tangents' Gram matrix.
    """

    unit: np.ndarray
    tangents: np.ndarray
    inverse: np.ndarray


def _dct_basis(side: int, waves: int) -> np.ndarray:
    """(W, S) float32 orthonormal cosines."""
    angle = np.pi * np.arange(waves)[:, None] * (np.arange(side) + 0.5) / side
    basis = np.cos(angle) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def make_spectra(thumbs: np.ndarray, rows: np.ndarray, frame: Frame) -> _Spectra:
    """Frequencies and tangents of one frame of some of (N, 2, 96, 96) ink maps."""
    total, waves = len(rows), frame.waves
    tangents = np.empty((total, 7, waves, waves), np.float32)
    basis = _dct_basis(_SMALL_PX, waves)
    for start in range(0, total, _BLOCK):
        small = _shrink_maps(thumbs, rows[start : start + _BLOCK], frame)
        fields_of = _tangent_fields(small)  # (n, 7, 32, 32)
        tangents[start : start + _BLOCK] = basis @ fields_of @ basis.T
    tangents[:, :, 0, 0] = 0  # the mean: how much ink, not which
    unit = _normalise(tangents[:, 0])
    flat = tangents.reshape(total, 7, -1)
    gram = flat @ flat.swapaxes(1, 2)
    trace = np.trace(gram, axis1=1, axis2=2)[:, None, None] / 7 + 1e-6
    inverse = np.linalg.inv(gram + 1e-3 * trace * np.eye(7, dtype=np.float32))
    return _Spectra(unit, flat, inverse)


def _make_units(thumbs: np.ndarray, rows: np.ndarray, frame: Frame) -> np.ndarray:
    """(N, W, W) frequencies alone, of the maps turned by the frame's angle."""
    basis = _dct_basis(_SMALL_PX, frame.waves)
    blocks = [
        basis @ _shrink_maps(thumbs, rows[start : start + _BLOCK], frame) @ basis.T
        for start in range(0, len(rows), _BLOCK)
    ]
    units = np.concatenate(blocks)
    units[:, 0, 0] = 0
    return _normalise(units)


def _normalise(spectra: np.ndarray) -> np.ndarray:
    """(N, W, W) copies of length 1."""
    length = np.sqrt((spectra * spectra).sum(axis=(1, 2), keepdims=True))
    return spectra / np.maximum(length, 1e-6)


def _shrink_maps(thumbs: np.ndarray, rows: np.ndarray, frame: Frame) -> np.ndarray:
    """(n, 32, 32) float32 smooth maps of one frame."""
    return np.stack([_shrink(ink_of(thumbs, row, frame)) for row in rows])


def ink_of(thumbs: np.ndarray, row: int, frame: Frame) -> np.ndarray:
    """(96, 96) uint8 ink map of one picture, turned by the frame's angle."""
    ink = thumbs[row, frame.index]
    if frame.angle == 0:
        return ink
    centre = ((measures.THUMB_PX - 1) / 2, (measures.THUMB_PX - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, frame.angle, 1.0)
    return cv2.warpAffine(ink, matrix, ink.shape[::-1], flags=cv2.INTER_LINEAR)


def _shrink(ink: np.ndarray) -> np.ndarray:
    """(32, 32) levelled lines: a black disc would drown the drawing around it."""
    small = cv2.resize(ink, (_SMALL_PX, _SMALL_PX), interpolation=cv2.INTER_AREA)
    return alignment.level_lines(small.astype(np.float32), 0.7, 3.0, 0.1)


def _tangent_fields(small: np.ndarray) -> np.ndarray:
    """(n, S, S) → (n, 7, S, S): the map, d/dx, d/dy, and those times x and y."""
    side = small.shape[-1]
    place = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    across, down = np.zeros_like(small), np.zeros_like(small)
    across[:, :, 1:-1] = (small[:, :, 2:] - small[:, :, :-2]) / 2
    down[:, 1:-1] = (small[:, 2:] - small[:, :-2]) / 2
    x, y = place[None, None, :], place[None, :, None]
    fields = [small, across, down, across * x, down * y, across * y, down * x]
    return np.stack(fields, axis=1)


def _parity_parts(unit: np.ndarray) -> list[np.ndarray]:
    """(N, ·) parts of even/odd rows × even/odd columns of the frequencies."""
    parts = [unit[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return [np.ascontiguousarray(part.reshape(len(unit), -1)) for part in parts]


def _best_cosines(rows: list[np.ndarray], columns: list[np.ndarray]) -> np.ndarray:
    """(n, m) best cosine over the four flips; parts as of `_parity_parts`."""
    both, across, down, turned = (
        a @ b.T for a, b in zip(rows, columns, strict=True)
    )  # even-even, even-odd, odd-even, odd-odd
    straight = np.abs(across + down)
    straight += both
    straight += turned
    np.subtract(across, down, out=across)
    np.abs(across, out=across)
    across += both
    across -= turned
    return np.maximum(straight, across, out=straight)


def _dense_candidates(
    unit: np.ndarray, others: np.ndarray, cosine: float, pool: ThreadPoolExecutor
) -> np.ndarray:
    """(M, 2) rows i < j: i of `unit` is like j of `others` in some orientation."""
    parts = _parity_parts(unit)
    sides = _parity_parts(others), _parity_parts(others.swapaxes(1, 2))
    total = len(unit)

    def compare(corner: tuple[int, int]) -> np.ndarray:
        top, left = corner
        rows = [part[top : top + _BLOCK] for part in parts]
        hits = [
            _best_cosines(rows, [part[left : left + 2 * _BLOCK] for part in side])
            >= cosine
            for side in sides
        ]
        flat = np.flatnonzero(hits[0] | hits[1])  # argwhere is forty times slower
        pairs = np.column_stack(np.divmod(flat, hits[0].shape[1])) + corner
        return pairs[pairs[:, 0] < pairs[:, 1]].astype(np.int32)

    corners = [
        (top, left)
        for top in range(0, total, _BLOCK)
        for left in range(0, total, 2 * _BLOCK)
        if left + 2 * _BLOCK > top
    ]
    found = list(pool.map(compare, corners))
    return np.concatenate(found)


def compare_all(unit: np.ndarray, others: np.ndarray, cosine: float) -> np.ndarray:
    """(M, 2) rows i < j of (N, W, W) unit spectra alike in some orientation."""
    with passes.one_thread_each(0) as pool, threadpool_limits(1):
        return _dense_candidates(unit, others, cosine, pool)


@dataclass(frozen=True)
class _Candidates:
    """Pairs to verify: rows, orientation of j that fits i, likeness, first fit."""

    i: np.ndarray
    j: np.ndarray
    orientation: np.ndarray
    tangent: np.ndarray
    shift: np.ndarray  # (M, 6)
    frame: np.ndarray  # number in FRAMES


def _oriented(unit: np.ndarray) -> np.ndarray:
    """(n, W, W) → (8, n, W·W): the frequencies of each orientation."""
    sign = (-1.0) ** np.arange(unit.shape[-1], dtype=np.float32)
    turned = []
    for swap, down, across in _STEPS:
        block = unit.swapaxes(1, 2) if swap else unit
        block = block * (sign[:, None] if down else 1) * (sign if across else 1)
        turned.append(block.reshape(len(unit), -1))
    return np.stack(turned)


def _fit_tangents(
    spectra: _Spectra, others: np.ndarray, pairs: np.ndarray, frame: Frame
) -> Iterator[_Candidates]:
    """The pairs, with their orientations, that the first-order fit keeps."""
    for start in range(0, len(pairs), 4 * _BLOCK):
        i, j = pairs[start : start + 4 * _BLOCK].T
        turned = _oriented(others[j])  # (8, n, W·W)
        flat = spectra.unit[i].reshape(len(i), -1)
        cosines = np.einsum("onk,nk->on", turned, flat)
        cosines[0] += 0.005  # of equals, upright is the plain answer
        for rank in (-1, -2):
            o = np.argsort(cosines, axis=0)[rank]
            close = np.take_along_axis(cosines, o[None], 0)[0] >= frame.cosine
            chosen = np.flatnonzero(close)
            target = turned[o[chosen], chosen]
            yield _project(spectra, (i[chosen], j[chosen], o[chosen]), target, frame)


def _number(frame: Frame) -> int:
    return [(f.index, f.angle) for f in FRAMES].index((frame.index, frame.angle))


def _project(
    spectra: _Spectra,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    target: np.ndarray,
    frame: Frame,
) -> _Candidates:
    i, j, orientation = pairs
    along = np.einsum("ntk,nk->nt", spectra.tangents[i], target)  # (n, 7)
    weight = np.einsum("nst,nt->ns", spectra.inverse[i], along)
    explained = np.sqrt(np.maximum((weight * along).sum(axis=1), 0))
    shift = weight[:, 1:] / np.where(np.abs(weight[:, :1]) < 1e-9, 1, weight[:, :1])
    bent = np.eye(2) + shift[:, [[2, 4], [5, 3]]] / (_SMALL_PX / 2)
    scales = np.linalg.svd(bent, compute_uv=False)
    straight = scales[:, 0] <= _FIRST_STRETCH * scales[:, 1]
    kept = (explained >= frame.tangent) & (straight | (frame.tangent < 0))
    return _Candidates(
        i[kept],
        j[kept],
        orientation[kept],
        explained[kept],
        shift[kept],
        np.full(int(kept.sum()), _number(frame)),
    )


# --- the search -----------------------------------------------------------------


_View = tuple[Frame, _Spectra, np.ndarray]


class _Search:
    """Finds and verifies near pairs among some rows of the ink maps."""

    def __init__(
        self, thumbs: np.ndarray, rows: np.ndarray, threshold: float, workers: int
    ) -> None:
        self.thumbs, self.rows, self.threshold = thumbs, rows, threshold
        self.workers = workers

    def run(self, extra: np.ndarray) -> list[_Match]:
        """(row, row, orientation that turns the first into the second, score)."""
        if len(self.rows) < 2:
            return []
        with passes.one_thread_each(self.workers) as pool, threadpool_limits(1):
            views = self._views()
            found: list[_Match] = []
            for part in (views[:2], views[2:]):  # turned maps only if need be
                proposed = self._propose(part, extra, pool)
                found += self._verify(_without(proposed, found), pool)
            found += self._verify(_relink(views, _missing_links(found)), pool)
        rows = self.rows
        return [
            (int(rows[i]), int(rows[j]), int(_INVERSE[o]), score)
            for i, j, o, score in found
        ]

    def _views(self) -> list[_View]:
        """Each frame with the spectra of the first picture and of the second."""
        box, full = (make_spectra(self.thumbs, self.rows, f) for f in (BOX, FULL))
        views = [(BOX, box, box.unit), (FULL, full, full.unit)]
        for frame in (LEFT, RIGHT):
            views.append((frame, full, _make_units(self.thumbs, self.rows, frame)))
        return views

    def _propose(
        self, views: list[_View], extra: np.ndarray, pool: ThreadPoolExecutor
    ) -> list[_Candidates]:
        found = []
        for frame, seen, others in views:
            pairs = _dense_candidates(seen.unit, others, frame.cosine, pool)
            found += list(_fit_tangents(seen, others, pairs, frame))
            found += list(_fit_tangents(seen, others, extra, _unlimited(frame)))
        return found

    def _verify(
        self, proposed: list[_Candidates], pool: ThreadPoolExecutor
    ) -> list[_Match]:
        """Accepted pairs (i, j, orientation of j that fits i, score)."""
        if not proposed:
            return []
        table = _join(proposed)
        starts = np.flatnonzero(
            np.diff(table.i, prepend=-1) | np.diff(table.j, prepend=-1)
        )
        bounds = [*starts.tolist(), len(table.i)]
        cuts = list(itertools.pairwise(bounds))
        chunks = [cuts[at : at + 64] for at in range(0, len(cuts), 64)]
        found = pool.map(lambda part: [self._best(table, *cut) for cut in part], chunks)
        best = (one for part in found for one in part)
        return [one for one in best if one[3] >= self.threshold]

    def _best(
        self, table: _Candidates, start: int, stop: int
    ) -> tuple[int, int, int, float]:
        """The best orientation of one pair; the most promising is tried first."""
        i, j = int(table.i[start]), int(table.j[start])
        best = (i, j, 0, 0.0)
        for at in range(start, min(stop, start + 4)):
            frame, orientation = FRAMES[table.frame[at]], int(table.orientation[at])
            if best[3] >= self.threshold and orientation == best[2]:
                continue  # seen well enough in another frame
            moving = self.thumbs[self.rows[i], frame.index]
            target = turn(
                ink_of(self.thumbs, self.rows[j], frame), ORIENTATIONS[orientation]
            )
            start_map = alignment.start_matrix(table.shift[at], _SMALL_PX)
            target = np.ascontiguousarray(target)
            score = alignment.compare_ink(target, moving, start_map, self.threshold)
            if score > best[3]:
                best = (i, j, orientation, score)
            if score > alignment.SURE:
                break
        return best


def _without(proposed: list[_Candidates], found: list[_Match]) -> list[_Candidates]:
    """The candidates whose pair has not been accepted yet."""
    known = np.array([match[:2] for match in found], np.int64).reshape(-1, 2)
    accepted = _pair_code(known[:, 0], known[:, 1])
    return [
        _select(part, ~np.isin(_pair_code(part.i, part.j), accepted))
        for part in proposed
    ]


def _pair_code(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return i.astype(np.int64) << 32 | j


def _select(table: _Candidates, rows: np.ndarray) -> _Candidates:
    return _Candidates(*(getattr(table, f.name)[rows] for f in fields(_Candidates)))


def _unlimited(frame: Frame) -> Frame:
    """The same frame with every pair let through to verification."""
    return replace(frame, cosine=-2.0, tangent=-1.0)


def _join(proposed: list[_Candidates]) -> _Candidates:
    """All candidates, sorted by pair and then by promise, upright first of equals."""
    names = [field.name for field in fields(_Candidates)]
    columns = [np.concatenate([getattr(c, name) for c in proposed]) for name in names]
    table = _Candidates(*columns)
    promise = table.tangent + 0.005 * (table.orientation == 0)
    kept = np.minimum(_rank(table.i, promise), _rank(table.j, promise)) < _MOST_TRIED
    order = np.lexsort((-promise, table.j, table.i))
    return _select(table, order[kept[order]])


def _rank(owner: np.ndarray, promise: np.ndarray) -> np.ndarray:
    """(M,) place of each entry among its owner's, 0 for the most promising."""
    order = np.lexsort((-promise, owner))
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    sizes = np.diff([*starts, len(owner)])
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - np.repeat(starts, sizes)
    return rank


def _missing_links(
    found: list[_Match],
) -> list[tuple[int, int, int]]:
    """Pairs inside a connected set that no candidate named, with their orientation.

    Two copies of one original are copies of each other, yet may differ too much for
    the candidate search (one turned left, one right); they get their own check.
    """
    links: dict[int, list[tuple[int, int]]] = {}
    for i, j, o, _ in found:
        links.setdefault(j, []).append((i, o))
        links.setdefault(i, []).append((j, int(_INVERSE[o])))
    known = {(i, j) for i, j, _, _ in found}
    missing: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    for root in sorted(links):
        if root in seen:
            continue
        pose = {root: 0}  # how root is turned to become each member
        queue = [root]
        for at in queue:
            for other, step in links[at]:
                if other not in pose:
                    pose[other] = int(_PRODUCT[pose[at], step])
                    queue.append(other)
        seen.update(pose)
        if len(pose) > _MOST_LINKED:
            continue
        for i, j in itertools.combinations(sorted(pose), 2):
            if (i, j) not in known:
                back = _PRODUCT[_INVERSE[pose[j]], pose[i]]
                missing.append((i, j, int(back)))
    return missing


def _relink(
    views: list[_View], missing: list[tuple[int, int, int]]
) -> list[_Candidates]:
    if not missing:
        return []
    i, j, orientation = np.array(missing).T
    found = []
    for frame, seen, others in views:
        turned = _oriented(others[j])[orientation, np.arange(len(j))]
        found.append(_project(seen, (i, j, orientation), turned, _unlimited(frame)))
    return found
