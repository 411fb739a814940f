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
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import cv2
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from sketchlib.data import alignment, audit, mapped, measures, passes, spectra

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

_LEAST_INK = 0.002  # share; with less, a speck is all there is to compare
_MOST_LINKED = 40  # members of a set whose every pair is checked
_MOST_EXACT = 40  # larger sets of identical files are listed against their first
_MOST_TRIED = 40  # candidates verified for each picture

_Match = tuple[int, int, int, float]  # i, j, orientation, score
_BEST = np.dtype([("i", "i8"), ("j", "i8"), ("orientation", "i8"), ("score", "f8")])


def turn(pixels: np.ndarray, kind: str) -> np.ndarray:
    """A view of (H, W, …) `pixels` in the orientation `kind`; others stay as they are.

    `rot90` is a quarter turn counter-clockwise, as numpy's; `transpose` swaps rows
    and columns, `transverse` does so about the other diagonal.
    """
    if kind not in ORIENTATIONS:
        return pixels
    swap, down, across = spectra.STEPS[ORIENTATIONS.index(kind)]
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


def propose_neighbours(
    image_ids: np.ndarray, features: np.ndarray | None, each: int
) -> pd.DataFrame:
    """The most alike pictures by a model's features, for `find_pairs` to prove.

    Args:
        image_ids: (N,) ids, row by row.
        features: (N, D) of a frozen model; None proposes nothing.
        each: neighbours of each picture, by cosine.
    Returns:
        `image_id_a, image_id_b`, each pair once.
    """
    if features is None or len(features) < 2:
        return pd.DataFrame(columns=PAIR_COLUMNS[:2])
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    count = min(each, len(unit) - 1)
    found = []
    for start in range(0, len(unit), 1024):
        alike = unit[start : start + 1024] @ unit.T
        rows = np.arange(len(alike))
        alike[rows, rows + start] = -np.inf
        near = np.argpartition(-alike, count - 1, axis=1)[:, :count]
        found.append(np.column_stack([np.repeat(rows + start, count), near.ravel()]))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return pd.DataFrame(np.asarray(image_ids)[pairs], columns=PAIR_COLUMNS[:2])


# --- exact copies ---------------------------------------------------------------


def _exact_sets(findings: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """For each of `rows`, the first row with the same pixels (or the same bytes)."""
    part = findings.iloc[rows]
    first = pd.Series(rows, index=part.index)
    by_pixels = first.groupby(part["pixel_hash"]).transform("min")
    return by_pixels.groupby(part["sha256"]).transform("min").to_numpy()


def _exact_pairs(sets: Mapping[int, list[int]]) -> Iterator[tuple[int, int]]:
    """All pairs inside each set; of a large set, its first row with every other."""
    for members in sets.values():
        if len(members) <= _MOST_EXACT:
            yield from itertools.combinations(members, 2)
        else:
            yield from ((members[0], other) for other in members[1:])


def _as_table(
    findings: pd.DataFrame,
    rows: np.ndarray,
    exact: np.ndarray,
    near: Iterable[_Match],
) -> pd.DataFrame:
    """Exact pairs, and near pairs for every member of the sets they join."""
    sha = findings["sha256"].to_numpy()
    members: dict[int, list[int]] = {}
    for row, first in zip(rows.tolist(), exact.tolist(), strict=True):
        members.setdefault(first, []).append(row)
    found = [
        (a, b, "bytes" if sha[a] == sha[b] else "pixels", 1.0)
        for a, b in _exact_pairs(members)
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


# --- the search -----------------------------------------------------------------


_View = tuple[spectra.Spectra, spectra.Spectra]


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
            views = self._views(pool)
            found: list[_Match] = []
            for part in (views[:2], views[2:]):  # turned maps only if need be
                proposed = self._propose(part, extra, pool)
                found += self._verify(_without(proposed, found))
            found += self._verify(_relink(views, _missing_links(found)))
        rows = self.rows
        return [
            (int(rows[i]), int(rows[j]), int(_INVERSE[o]), score)
            for i, j, o, score in found
        ]

    def _views(self, pool: ThreadPoolExecutor) -> list[_View]:
        """Each frame's spectra of the first picture and of the second."""
        box, full = (
            spectra.shrink_maps(self.thumbs, self.rows, frame.index, pool)
            for frame in (spectra.BOX, spectra.FULL)
        )
        (tight,) = spectra.make_spectra(box, (spectra.BOX,), pool)
        upright, left, right = spectra.make_spectra(full, spectra.FRAMES[1:], pool)
        return [(tight, tight), (upright, upright), (upright, left), (upright, right)]

    def _propose(
        self, views: list[_View], extra: np.ndarray, pool: ThreadPoolExecutor
    ) -> list[spectra.Candidates]:
        found = []
        for seen, others in views:
            units = seen.unit, others.unit
            pairs = spectra.find_candidates(*units, others.frame, pool)
            found += spectra.fit_tangents(seen, others, pairs, pool)
            free = spectra.unlimited(others)
            found += spectra.fit_tangents(seen, free, extra, pool)
        return found

    def _verify(self, proposed: list[spectra.Candidates]) -> list[_Match]:
        """Accepted pairs (i, j, orientation of j that fits i, score)."""
        if not proposed:
            return []
        table = _join(proposed)
        starts = np.flatnonzero(
            np.diff(table.i, prepend=-1) | np.diff(table.j, prepend=-1)
        )
        bounds = [*starts.tolist(), len(table.i)]
        best = mapped.shared_zeros(len(starts), _BEST)

        def prove(cuts: Iterable[int]) -> None:
            for cut in cuts:
                best[cut] = self._best(table, bounds[cut], bounds[cut + 1])

        rows = range(len(starts))
        way = passes.Pass(lambda cut: f"pair {cut}", self.workers, shared=True)
        for _ in passes.run_rows(prove, list(rows), way):
            pass
        return [one for one in best.tolist() if one[3] >= self.threshold]

    def _best(
        self, table: spectra.Candidates, start: int, stop: int
    ) -> tuple[int, int, int, float]:
        """The best orientation of one pair; the most promising is tried first."""
        i, j = int(table.i[start]), int(table.j[start])
        best = (i, j, 0, 0.0)
        for at in range(start, min(stop, start + 4)):
            frame, orientation = (
                spectra.FRAMES[table.frame[at]],
                int(table.orientation[at]),
            )
            if best[3] >= self.threshold and orientation == best[2]:
                continue  # seen well enough in another frame
            moving = self.thumbs[self.rows[i], frame.index]
            target = turn(
                ink_of(self.thumbs, self.rows[j], frame), ORIENTATIONS[orientation]
            )
            start_map = alignment.start_matrix(table.shift[at], spectra.SMALL_PX)
            target = np.ascontiguousarray(target)
            score = alignment.compare_ink(target, moving, start_map, self.threshold)
            if score > best[3]:
                best = (i, j, orientation, score)
            if score > alignment.SURE:
                break
        return best


def _without(
    proposed: list[spectra.Candidates], found: list[_Match]
) -> list[spectra.Candidates]:
    """The candidates whose pair has not been accepted yet."""
    known = np.array([match[:2] for match in found], np.int64).reshape(-1, 2)
    accepted = _pair_code(known[:, 0], known[:, 1])
    return [
        _select(part, ~np.isin(_pair_code(part.i, part.j), accepted))
        for part in proposed
    ]


def _pair_code(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return i.astype(np.int64) << 32 | j


def _select(table: spectra.Candidates, rows: np.ndarray) -> spectra.Candidates:
    return spectra.Candidates(
        *(getattr(table, f.name)[rows] for f in fields(spectra.Candidates))
    )


def _join(proposed: list[spectra.Candidates]) -> spectra.Candidates:
    """All candidates, sorted by pair and then by promise, upright first of equals."""
    names = [field.name for field in fields(spectra.Candidates)]
    columns = [np.concatenate([getattr(c, name) for c in proposed]) for name in names]
    table = spectra.Candidates(*columns)
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
) -> list[spectra.Candidates]:
    if not missing:
        return []
    i, j, orientation = np.array(missing).T
    found = []
    for seen, others in views:
        turned = spectra.oriented(others.unit[j])[orientation, np.arange(len(j))]
        frame = spectra.unlimited(others).frame
        found.append(spectra.project(seen, (i, j, orientation), turned, frame))
    return found


def ink_of(thumbs: np.ndarray, row: int, frame: spectra.Frame) -> np.ndarray:
    """(96, 96) uint8 ink map of one picture, turned by the frame's angle."""
    ink = thumbs[row, frame.index]
    if frame.angle == 0:
        return ink
    centre = ((measures.THUMB_PX - 1) / 2, (measures.THUMB_PX - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, frame.angle, 1.0)
    return cv2.warpAffine(ink, matrix, ink.shape[::-1], flags=cv2.INTER_LINEAR)
