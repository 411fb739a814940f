"""Several runs as one by plain votes and means, and who helps whom in it.

What is fitted is in `combiners`, what is judged in `search`. Limits: float32, one
run's probabilities at a time; a tie is what differs by less than a millionth.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from sketchlib.analysis import combiners, joining, scores
from sketchlib.training.predictions import Predictions, read_predictions

How = Literal["soft", "hard", "geometric", "rank"]
_OPPOSITE = {"better": "worse", "worse": "better"} | {
    "cannot tell yet": "cannot tell yet"
}
METHODS: tuple[How, ...] = ("soft", "hard", "geometric", "rank")
_TIE = 1e-6  # scores closer than this are a tie
_NUDGE = 1e-3  # weight of the tie-breaker


# --- joining runs -----------------------------------------------------------


def align(runs: dict[str, Predictions]) -> dict[str, Predictions]:
    """The same runs, rows in the first run's order, columns in its class order.

    Args:
        runs: predictions by run name; all out-of-fold, or all of the test set.
    Raises:
        ValueError: no run; other images, classes or folds, with the difference named;
            probabilities where logits belong.
    """
    if not runs:
        raise ValueError("an ensemble should have at least one run, but none came")
    first = next(iter(runs.values()))
    joining.check_same_images(runs)
    aligned = {}
    for name, run in runs.items():
        try:
            ordered = joining.align_classes(run, list(first.classes))
        except ValueError as error:
            raise ValueError(f"run `{name}`: {error}") from error
        aligned[name] = joining.take_images(ordered, first.image_ids)
    joining.check_same_folds(aligned)
    return aligned


def make_predictions(like: Predictions, probs: np.ndarray) -> Predictions:
    """Probabilities of the images of `like` as `Predictions`.

    Args:
        like: gives image ids, classes and folds.
        probs: (N, K) in 0-1, rows sum to 1.
    Raises:
        ValueError: NaN, negative, or rows that do not sum to 1, as logits would not.
    """
    check_probs(probs)
    logits = np.log(np.maximum(probs, combiners.TINY)).astype(np.float32)
    return replace(like, logits=logits)


def check_probs(probs: np.ndarray) -> None:
    """Raise ValueError unless `probs` are finite, in 0-1, and rows sum to 1."""
    if not np.isfinite(probs).all():
        bad = int((~np.isfinite(probs).all(axis=1)).sum())
        raise ValueError(
            f"probabilities should be finite, but {bad} of {len(probs)} rows are not; "
            "predict again, the run may have diverged"
        )
    sums = probs.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax()) if len(sums) else 0
    if len(sums) and (probs.min() < 0 or abs(sums[worst] - 1) > 1e-3):
        raise ValueError(
            "probabilities should lie in 0-1 and each row sum to 1, but the smallest "
            f"is {probs.min():.3g} and row {worst} sums to {sums[worst]:.3g}; are "
            "these logits? Apply softmax first"
        )


def check_weights(runs: dict[str, Predictions], weights: dict[str, float]) -> None:
    """Raise ValueError unless there is one weight ≥ 0 per run, not all zero."""
    if set(weights) != set(runs):
        raise ValueError(
            f"`weights` should name the runs {sorted(runs)}, but names "
            f"{sorted(weights)}; give 0 to leave a run out"
        )
    values = np.array(list(weights.values()), float)
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise ValueError(
            f"`weights` should be ≥ 0 and not all 0, but {weights} came; "
            "give 0 to leave a run out"
        )


# --- blending ---------------------------------------------------------------


def blend(
    runs: dict[str, Predictions],
    weights: dict[str, float] | None = None,
    how: How = "soft",
) -> Predictions:
    """One prediction out of many.

    Args:
        runs: predictions by run name; aligned here.
        weights: per run, ≥ 0, scaled to sum 1. None: equal.
        how: `soft` mean probability; `geometric` mean log-probability; `hard`
            majority vote; `rank` mean of 1/rank of the 20 likeliest classes within
            a picture (Cormack et al. 2009, reciprocal rank fusion).
    Returns:
        Log-probabilities of the first run's images in its order. Ties go to the
        higher mean probability, then to the run named first, never to a class number.
    """
    check_how(how)
    aligned = align(runs)
    shares = _shares(aligned, weights)
    first = next(iter(aligned.values()))
    mean, votes = _add_up(aligned, shares, how)
    return _decide(first, mean, votes, how)


def check_how(how: str) -> How:
    """The name of a plain combination; raises ValueError for any other."""
    for known in METHODS:
        if how == known:
            return known
    raise ValueError(f"`how` should be one of {list(METHODS)}, but {how!r} came")


def blend_plain(runs: dict[str, Predictions]) -> dict[str, Predictions]:
    """All four plain combinations with equal weights, in one pass over the runs."""
    aligned = align(runs)
    first = next(iter(aligned.values()))
    sums: dict[str, np.ndarray] = {
        how: np.zeros(first.logits.shape, np.float32) for how in METHODS
    }
    share = np.float32(1 / len(aligned))
    for run in aligned.values():
        probs = combiners.as_probs(run.logits)
        sums["soft"] += share * probs
        for how, vote in _VOTES.items():
            sums[how] += share * vote(probs)
    mean = sums["soft"]
    return {how: _decide(first, mean, sums[how], how) for how in METHODS}


def read_votes(run_dir: Path, inner: str) -> Predictions:
    """A run's test predictions, its folds voting softly or by one vote each.

    Raises:
        FileNotFoundError: the run, or its folds, hold no test predictions.
        ValueError: an unknown vote.
    """
    if check_how(inner) == "soft":
        return read_predictions(run_dir / "test.npz")
    parts = sorted(run_dir.glob("fold*/test.npz"))
    if not parts:
        raise FileNotFoundError(
            f"`fold0/test.npz` was expected in {run_dir}; folders copied without the "
            "folds can only vote softly: set `fold_vote` to soft"
        )
    each = {path.parent.name: read_predictions(path) for path in parts}
    return blend(each, how=check_how(inner))


def _add_up(
    runs: dict[str, Predictions], shares: dict[str, float], how: How
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) weighted mean probability, and weighted mean vote, one run at a time."""
    mean = np.zeros(next(iter(runs.values())).logits.shape, np.float32)
    votes = mean if how == "soft" else np.zeros_like(mean)
    for name, share in shares.items():
        probs = combiners.as_probs(runs[name].logits)
        mean += np.float32(share) * probs
        if how != "soft":
            votes += np.float32(share) * _VOTES[how](probs)
    return mean, votes


def _decide(
    first: Predictions, mean: np.ndarray, votes: np.ndarray, how: How
) -> Predictions:
    """Probabilities from votes; ties go to the mean, then to the first run."""
    probs = combiners.as_probs(votes) if how == "geometric" else votes
    return make_predictions(
        first, _break_ties(probs, [mean, combiners.as_probs(first.logits)])
    )


def settle(
    like: Predictions, probs: np.ndarray, judges: Sequence[Predictions]
) -> Predictions:
    """Probabilities (N, K) as predictions; tied winners are tipped by the judges."""
    return make_predictions(like, _break_ties(probs, [one.probs for one in judges]))


def _shares(
    runs: dict[str, Predictions], weights: dict[str, float] | None
) -> dict[str, float]:
    """Weights that sum to 1, runs without weight left out."""
    if weights is None:
        return dict.fromkeys(runs, 1 / len(runs))
    check_weights(runs, weights)
    total = sum(weights.values())
    return {name: weights[name] / total for name in runs if weights[name] > 0}


def _as_vote(probs: np.ndarray) -> np.ndarray:
    """(N, K) 1 for the winner; shared where a run itself is undecided."""
    top = probs >= probs.max(axis=1, keepdims=True) * (1 - _TIE)
    return (top / top.sum(axis=1, keepdims=True)).astype(np.float32)


def _as_reciprocal_ranks(probs: np.ndarray) -> np.ndarray:
    """(N, K) 1/rank of the 20 likeliest classes, 0 below, rows summing to 1.

    Equal probabilities share their mean rank, so no class number decides.
    """
    count = min(20, probs.shape[1])
    top = np.argpartition(-probs, count - 1, axis=1)[:, :count]  # (N, 20)
    ranks = stats.rankdata(-np.take_along_axis(probs, top, axis=1), axis=1)
    inverse = np.zeros_like(probs)
    np.put_along_axis(inverse, top, 1 / ranks, axis=1)
    return inverse / inverse.sum(axis=1, keepdims=True)


_VOTES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "geometric": combiners.as_logs,
    "hard": _as_vote,
    "rank": _as_reciprocal_ranks,
}


def _break_ties(probs: np.ndarray, judges: Sequence[np.ndarray]) -> np.ndarray:
    """The same probabilities, rows with tied winners tipped by the judges in turn."""
    tipped = probs.copy()
    for judge in judges:
        highest = np.partition(tipped, -2, axis=1)[:, -2:]  # (N, 2)
        tied = highest[:, 1] - highest[:, 0] < _TIE
        if not tied.any():
            break
        tipped[tied] = (1 - _NUDGE) * tipped[tied] + _NUDGE * judge[tied]
    return tipped


# --- who helps whom ---------------------------------------------------------


def agreement(runs: dict[str, Predictions]) -> pd.DataFrame:
    """(M, M) share of images, 0-1, that two runs give the same class."""
    aligned = align(runs)
    labels = np.array([run.labels for run in aligned.values()])  # (M, N)
    same = (labels[:, None] == labels[None]).mean(axis=2)
    return pd.DataFrame(same, list(aligned), list(aligned))


def rescues(runs: dict[str, Predictions], manifest: pd.DataFrame) -> pd.DataFrame:
    """(M, M) share of a row's mistakes, 0-1, that the column's run has right.

    High both ways means complementary members; 0 on the diagonal.
    """
    aligned = _align_kept(runs, manifest)
    truth = joining.join_labels(next(iter(aligned.values())), manifest)
    right = np.array([_find_correct(run, truth) for run in aligned.values()])
    wrong = ~right
    saved = (wrong[:, None] & right[None]).sum(axis=2)
    shares = saved / np.maximum(wrong.sum(axis=1), 1)[:, None]
    return pd.DataFrame(shares, list(aligned), list(aligned))


def leave_one_out(
    runs: dict[str, Predictions],
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    weights: dict[str, float] | None = None,
    how: How = "soft",
) -> pd.DataFrame:
    """What each member adds to the ensemble, most useful first.

    Returns:
        run, alone, without (accuracy, 0-1), adds (accuracy with it − without), low,
        high (95 % paired bootstrap), verdict on adding it.
    """
    if len(runs) < 2:
        raise ValueError(
            f"leaving one out needs at least two runs, but {sorted(runs)} came"
        )
    aligned = _align_kept(runs, manifest)
    shares = _shares(aligned, weights)
    mean, votes = _add_up(aligned, shares, how)
    first = next(iter(aligned.values()))
    truth = joining.join_labels(first, manifest)
    names = [name for name in aligned if shares.get(name, 0) < 1]
    whole = _find_correct(_decide(first, mean, votes, how), truth)
    without = []
    for name in names:
        share = np.float32(shares.get(name, 0.0))
        part = combiners.as_probs(aligned[name].logits)
        rest_mean = (mean - share * part) / (1 - share)
        rest = rest_mean
        if how != "soft":
            rest = (votes - share * _VOTES[how](part)) / (1 - share)
        without.append(_find_correct(_decide(first, rest_mean, rest, how), truth))
    codes = scores.group_codes(first.image_ids, groups)
    losses = scores.paired_gains(whole, np.array(without), codes)
    table = pd.DataFrame(
        {
            "run": names,
            "alone": [_find_correct(aligned[name], truth).mean() for name in names],
            "without": [float(right.mean()) for right in without],
            "adds": -losses["gain"],
            "low": -losses["high"],
            "high": -losses["low"],
            "verdict": losses["verdict"].map(_OPPOSITE),
        }
    )
    return table.sort_values("adds", ascending=False, ignore_index=True)


def _align_kept(
    runs: dict[str, Predictions], manifest: pd.DataFrame
) -> dict[str, Predictions]:
    """The runs aligned, without the pictures that the review dropped since."""
    return align(
        {name: joining.without_dropped(run, manifest) for name, run in runs.items()}
    )


def _find_correct(run: Predictions, truth: joining.Labelled) -> np.ndarray:
    """(N,) bool; rows must be in the order of `truth`."""
    return joining.align_classes(run, truth.classes).labels == truth.truth
