"""Several runs as one, and the submission that comes of it.

Plain soft voting is the default: on the competition's boards every fitted combiner
lost to it, because it was fitted on the wrong rows. Weights found here (Caruana et
al. 2004, "Ensemble selection from libraries of models") are scored on rows they were
not fitted on, and recommended only where they beat equal weights with an interval.
Limits: all members' probabilities are held in memory, float64, one run at a time
where that suffices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.model_selection import GroupKFold

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import manifest as manifests
from sketchlib.training.predictions import Predictions

How = Literal["soft", "hard", "geometric", "rank"]
_OPPOSITE = {"better": "worse", "worse": "better"} | {
    "cannot tell yet": "cannot tell yet"
}
METHODS: tuple[How, ...] = ("soft", "hard", "geometric", "rank")
_TINY = 1e-12  # probabilities below this count as this when logarithms are taken
_TIE = 1e-6  # scores closer than this are a tie
_NUDGE = 1e-3  # weight of the tie-breaker
_RIVALS = 10  # classes beside the true one that a weight search looks at


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
    scores.check_same_images(runs)
    aligned = {}
    for name, run in runs.items():
        try:
            ordered = scores.align_classes(run, list(first.classes))
        except ValueError as error:
            raise ValueError(f"run `{name}`: {error}") from error
        aligned[name] = scores.take_images(ordered, first.image_ids)
    scores.check_same_folds(aligned)
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
    logits = np.log(np.maximum(probs, _TINY)).astype(np.float32)
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
    if how not in METHODS:
        raise ValueError(f"`how` should be one of {list(METHODS)}, but {how!r} came")
    aligned = align(runs)
    shares = _shares(aligned, weights)
    first = next(iter(aligned.values()))
    mean, votes = _add_up(aligned, shares, how)
    return _decide(first, mean, votes, how)


def _add_up(
    runs: dict[str, Predictions], shares: dict[str, float], how: How
) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) weighted mean probability, and weighted mean vote, one run at a time."""
    mean = np.zeros(next(iter(runs.values())).logits.shape)
    votes = mean if how == "soft" else np.zeros_like(mean)
    for name, share in shares.items():
        probs = runs[name].probs
        mean += share * probs
        if how != "soft":
            votes += share * _VOTES[how](probs)
    return mean, votes


def _decide(
    first: Predictions, mean: np.ndarray, votes: np.ndarray, how: How
) -> Predictions:
    """Probabilities from votes; ties go to the mean, then to the first run."""
    probs = _softmax(votes) if how == "geometric" else votes
    return make_predictions(first, _break_ties(probs, [mean, first.probs]))


def _shares(
    runs: dict[str, Predictions], weights: dict[str, float] | None
) -> dict[str, float]:
    """Weights that sum to 1, runs without weight left out."""
    if weights is None:
        return dict.fromkeys(runs, 1 / len(runs))
    check_weights(runs, weights)
    total = sum(weights.values())
    return {name: weights[name] / total for name in runs if weights[name] > 0}


def _as_logs(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs, _TINY))


def _as_vote(probs: np.ndarray) -> np.ndarray:
    """(N, K) 1 for the winner; shared where a run itself is undecided."""
    top = probs >= probs.max(axis=1, keepdims=True) * (1 - _TIE)
    return top / top.sum(axis=1, keepdims=True)


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
    "geometric": _as_logs,
    "hard": _as_vote,
    "rank": _as_reciprocal_ranks,
}


def _softmax(scores_: np.ndarray) -> np.ndarray:
    powers = np.exp(scores_ - scores_.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


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
    aligned = align(runs)
    truth = scores.join_labels(next(iter(aligned.values())), manifest)
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
    aligned = align(runs)
    shares = _shares(aligned, weights)
    mean, votes = _add_up(aligned, shares, how)
    first = next(iter(aligned.values()))
    truth = scores.join_labels(first, manifest)
    names = [name for name in aligned if shares.get(name, 0) < 1]
    whole = _find_correct(_decide(first, mean, votes, how), truth)
    without = []
    for name in names:
        part, share = aligned[name].probs, shares.get(name, 0.0)
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


def _find_correct(run: Predictions, truth: scores.Labelled) -> np.ndarray:
    """(N,) bool; rows must be in the order of `truth`."""
    return scores.align_classes(run, truth.classes).labels == truth.truth


# --- searching weights ------------------------------------------------------


@dataclass(frozen=True)
class WeightSearch:
    """What the search found and whether to use it.

    Attributes:
        table: name, kind (`run`, `equal`, `fitted`), accuracy, low, high (95 %
            bootstrap by groups), log_loss, gain, gain_low, gain_high (against equal
            weights, paired), recommended. `fitted` is scored on rows its weights
            were not fitted on.
        weights: the recommended weights, summing to 1.
        fitted: weights fitted on all rows, summing to 1.
        path: step, added (run), accuracy, log_loss of the greedy search on all rows,
            the rows it was fitted on.
        oof: the recommended blend of the same images; where it is the fitted one,
            each row was weighted by what other folds taught. Score this, not a blend
            by `weights`, which have seen the labels.
        fitted_oof: the fitted blend, likewise.
        verdict: fitted against equal weights, in words.
    """

    table: pd.DataFrame
    weights: dict[str, float]
    fitted: dict[str, float]
    path: pd.DataFrame
    oof: Predictions
    fitted_oof: Predictions
    verdict: str


def search_weights(
    runs: dict[str, Predictions],
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    steps: int = 50,
    seed: int = 0,
) -> WeightSearch:
    """Greedy forward selection with replacement, judged on rows it has not seen.

    Each step adds the member that makes most pictures right, log loss deciding
    between equals. Weights are fitted on the other folds of each row; with a single
    fold, on random groups.

    Args:
        runs: out-of-fold predictions by run name.
        manifest: every predicted image must have a label in it.
        groups: `image_id, group`; groups are drawn and split whole.
        steps: members added, the same one possibly often.
        seed: of the bootstrap.
    """
    classes = manifests.class_names(manifest)
    aligned = {
        name: scores.align_classes(run, classes) for name, run in align(runs).items()
    }
    rivals = _rival_probs(aligned, manifest)
    path = _select_greedily(rivals, steps)
    fitted = _as_weights(path, list(aligned))
    equal = blend(aligned)
    nested = _blend_nested(aligned, rivals, groups, steps)
    contenders = {**aligned, "equal weights": equal, "fitted weights": nested}
    table = _score_contenders(contenders, manifest, groups, seed)
    change = scores.compare(equal, nested, manifest, groups, seed=seed)
    use_fitted = change.verdict == "better"
    table["recommended"] = table["kind"] == ("fitted" if use_fitted else "equal")
    return WeightSearch(
        table=table,
        weights=fitted if use_fitted else dict.fromkeys(aligned, 1 / len(aligned)),
        fitted=fitted,
        path=_as_path(path, rivals, list(aligned)),
        oof=nested if use_fitted else equal,
        fitted_oof=nested,
        verdict=f"fitted against equal weights: {change.text}",
    )


def _score_contenders(
    runs: dict[str, Predictions],
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None,
    seed: int,
) -> pd.DataFrame:
    """One row per run and blend; all are judged on the same drawn groups."""
    first = next(iter(runs.values()))
    truth = scores.join_labels(first, manifest)
    codes = scores.group_codes(first.image_ids, groups)
    right = np.array([_find_correct(run, truth) for run in runs.values()])
    sampled = scores.bootstrap_means(right, codes, seed=seed)
    lows, highs = np.quantile(sampled, [0.025, 0.975], axis=1)
    reference = right[list(runs).index("equal weights")]
    gains = scores.paired_gains(reference, right, codes, seed=seed)
    kinds = {"equal weights": "equal", "fitted weights": "fitted"}
    return pd.DataFrame(
        {
            "name": list(runs),
            "kind": [kinds.get(name, "run") for name in runs],
            "accuracy": right.mean(axis=1),
            "low": lows,
            "high": highs,
            "log_loss": [_log_loss(run, truth) for run in runs.values()],
            "gain": gains["gain"],
            "gain_low": gains["low"],
            "gain_high": gains["high"],
        }
    )


def _log_loss(run: Predictions, truth: scores.Labelled) -> float:
    """Mean of −log probability of the true class, nats."""
    probs = scores.align_classes(run, truth.classes).probs
    own = probs[np.arange(len(probs)), truth.truth]
    return float(-np.log(np.maximum(own, _TINY)).mean())


def _rival_probs(runs: dict[str, Predictions], manifest: pd.DataFrame) -> np.ndarray:
    """(C, M, N) float32: the true class's probability first, then its rivals'.

    Columns of the runs are in the manifest's class order.

    Only the classes that some member finds likely can win a weighted mean, so a
    search needs these few and not all K: 40 runs × 15,000 pictures are 26 MB.
    """
    first = next(iter(runs.values()))
    truth = scores.join_labels(first, manifest).truth[:, None]  # (N, 1)
    likely = np.zeros(first.logits.shape)
    for run in runs.values():
        np.maximum(likely, run.probs, out=likely)
    np.put_along_axis(likely, truth, -1.0, axis=1)  # a class is not its own rival
    count = min(_RIVALS, len(first.classes) - 1)
    rivals = np.argpartition(-likely, count - 1, axis=1)[:, :count]  # (N, C-1)
    columns = np.concatenate([truth, rivals], axis=1)
    picked = np.empty((count + 1, len(runs), len(columns)), np.float32)
    for member, run in enumerate(runs.values()):
        picked[:, member] = np.take_along_axis(run.probs, columns, axis=1).T
    return picked


def _select_greedily(rivals: np.ndarray, steps: int) -> list[int]:
    """Members in the order they were added, cut at the best score reached."""
    total = np.zeros_like(rivals[:, 0])  # (C, N)
    chosen, reached = [], []
    for step in range(1, steps + 1):
        hits, loss = _score_totals(total[:, None] + rivals, step)
        merit = hits - loss / 1e3  # loss is at most 28, a hit is worth more
        best = int(merit.argmax())
        chosen.append(best)
        reached.append(merit[best])
        total += rivals[:, best]
    return chosen[: int(np.argmax(reached)) + 1]


def _score_totals(totals: np.ndarray, members: int) -> tuple[np.ndarray, np.ndarray]:
    """Hits (pictures) and log loss of sums (C, ..., N) over `members`."""
    hits = (totals[0] > totals[1:].max(axis=0)).sum(axis=-1)
    loss = -np.log(np.maximum(totals[0] / members, _TINY)).mean(axis=-1)
    return hits, loss


def _as_weights(path: list[int], names: list[str]) -> dict[str, float]:
    counts = np.bincount(path, minlength=len(names)) / len(path)
    return {name: float(share) for name, share in zip(names, counts, strict=True)}


def _as_path(path: list[int], rivals: np.ndarray, names: list[str]) -> pd.DataFrame:
    """One row per greedy step, with the scores reached."""
    total = np.zeros_like(rivals[:, 0])
    rows = []
    for step, member in enumerate(path, 1):
        total += rivals[:, member]
        hits, loss = _score_totals(total, step)
        rows.append((step, names[member], hits / rivals.shape[2], float(loss)))
    return pd.DataFrame(rows, columns=["step", "added", "accuracy", "log_loss"])


def _blend_nested(
    runs: dict[str, Predictions],
    rivals: np.ndarray,
    groups: pd.DataFrame | None,
    steps: int,
) -> Predictions:
    """The blend whose rows were each weighted by what other folds taught."""
    first = next(iter(runs.values()))
    parts = _outer_folds(first, groups)
    names = list(runs)
    probs = np.empty(first.logits.shape)
    for part in np.unique(parts):
        here = parts == part
        weights = _as_weights(_select_greedily(rivals[:, :, ~here], steps), names)
        inside = {name: _take(run, here) for name, run in runs.items()}
        probs[here] = blend(inside, weights).probs
    return make_predictions(first, probs)


def _outer_folds(first: Predictions, groups: pd.DataFrame | None) -> np.ndarray:
    """(N,) the training folds, or five parts of whole groups where there is one."""
    if len(np.unique(first.fold)) > 1:
        return first.fold
    codes = scores.group_codes(first.image_ids, groups)
    parts = min(5, int(codes.max()) + 1)
    if parts < 2:
        raise ValueError(
            "weights should be fitted on other pictures than they are scored on, but "
            f"all {len(codes)} pictures are one group; use equal weights"
        )
    splitter = GroupKFold(n_splits=parts, shuffle=True, random_state=0)
    folds = np.empty(len(codes), np.int64)
    for part, (_, held_out) in enumerate(splitter.split(codes, groups=codes)):
        folds[held_out] = part
    return folds


def _take(run: Predictions, rows: np.ndarray) -> Predictions:
    """The rows where the mask is true."""
    return Predictions(
        run.image_ids[rows], run.classes, run.logits[rows], run.fold[rows]
    )


# --- submission -------------------------------------------------------------


def make_submission(
    test: Predictions,
    sample: pd.DataFrame | None,
    manifest: pd.DataFrame,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> pd.DataFrame:
    """The sample's columns, ids and order, with the predicted labels.

    Args:
        test: predictions of every test image.
        sample: the sample submission; None: `ID, image_path, target` in test order.
            Without a path column its rows are taken to be in test order.
        manifest: names the test images and the class order.
        given_labels: the user's own label number of each class, by our label.
        columns: names of the path and label columns.
    Raises:
        ValueError: a test image has no prediction, or the sample does not fit.
    """
    targets = _targets(test, manifest, given_labels)
    if sample is None:
        paths = [name.removeprefix("test/") for name in targets.index]
        numbers = range(len(paths))
        sample = pd.DataFrame({"ID": numbers, columns.path: paths, columns.label: 0})
    elif columns.label not in sample:
        raise ValueError(
            f"the sample submission should have the column `{columns.label}`, but has "
            f"{list(sample.columns)}; name it in the parameter `label_column`"
        )
    values = _in_sample_order(targets, sample, columns)
    submission = sample.copy()
    submission[columns.label] = values.astype(np.int64)
    return submission


def _targets(
    test: Predictions, manifest: pd.DataFrame, given_labels: Sequence[int]
) -> pd.Series:
    """The user's label of each test image, by `image_id`, in test order."""
    classes = manifests.class_names(manifest)
    if len(given_labels) != len(classes):
        raise ValueError(
            f"`given_labels` should have one number for each of {len(classes)} "
            f"classes, but has {len(given_labels)}; read it from the same train.csv"
        )
    aligned = scores.align_classes(test, classes)
    labels = np.asarray(given_labels)[aligned.labels]
    found = pd.Series(labels, index=aligned.image_ids.astype(str))
    wanted = manifests.test_rows(manifest)["image_id"].astype(str)
    missing = wanted[~wanted.isin(found.index)]
    if len(missing) or not len(wanted):
        raise ValueError(
            f"each of {len(wanted)} test images should be predicted, but "
            f"{scores.name_some(missing.to_numpy())} are not; predict test.csv again"
        )
    return found.reindex(wanted)


def _in_sample_order(
    targets: pd.Series, sample: pd.DataFrame, columns: manifests.Columns
) -> np.ndarray:
    if len(sample) != len(targets):
        raise ValueError(
            f"the sample submission should have one row per test image, "
            f"{len(targets)}, but has {len(sample)}; check that it belongs to test.csv"
        )
    if columns.path not in sample:
        return targets.to_numpy()
    paths = sample[columns.path].astype(str)
    cleaned = "test/" + manifests.clean_paths(paths, Path("sample_submission.csv"))
    strange = sorted(set(cleaned) - set(targets.index))
    if strange or cleaned.duplicated().any():
        repeated = paths[cleaned.duplicated()].tolist()
        raise ValueError(
            "the sample submission should name each test image once, but "
            f"{scores.name_some(strange)} are not in test.csv and "
            f"{scores.name_some(repeated)} stand twice"
        )
    return targets.reindex(cleaned).to_numpy()


def check_submission(
    submission: pd.DataFrame,
    sample: pd.DataFrame | None,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> None:
    """Raise ValueError unless the submission would be accepted and scored.

    Checked: columns and their order, row count, ids and their order, integer labels
    that exist. Values are compared as text, since a CSV is text.
    """
    if sample is not None:
        _check_against(submission, sample, columns.label)
    elif columns.label not in submission:
        raise ValueError(
            f"the submission should have the column `{columns.label}`, but has "
            f"{list(submission.columns)}"
        )
    targets = submission[columns.label]
    if not pd.api.types.is_integer_dtype(targets):
        raise ValueError(
            f"`{columns.label}` should hold whole numbers, but is {targets.dtype}; "
            "convert it with astype('int64')"
        )
    strange = ~targets.isin(list(given_labels))
    if strange.any():
        row = int(strange.to_numpy().argmax())
        raise ValueError(
            f"`{columns.label}` should be a label of train.csv "
            f"({min(given_labels)}-{max(given_labels)}), but row {row} has "
            f"{targets.iloc[row]} ({int(strange.sum())} such rows)"
        )


def _check_against(submission: pd.DataFrame, sample: pd.DataFrame, label: str) -> None:
    """Raise ValueError unless columns, rows and ids are the sample's."""
    if list(submission.columns) != list(sample.columns):
        raise ValueError(
            f"the submission should have the columns {list(sample.columns)} in this "
            f"order, but has {list(submission.columns)}"
        )
    if len(submission) != len(sample):
        raise ValueError(
            f"the submission should have {len(sample)} rows as the sample, but has "
            f"{len(submission)}; predict every picture of test.csv once"
        )
    for column in sample.columns.drop(label):
        given = submission[column].astype(str).to_numpy(str)
        wanted = sample[column].astype(str).to_numpy(str)
        differs = given != wanted
        if differs.any():
            row = int(differs.argmax())
            raise ValueError(
                f"`{column}` should be as in the sample, row by row, but row {row} has "
                f"{given[row]!r} where {wanted[row]!r} belongs ({int(differs.sum())} "
                "such rows); join by image path, not by position"
            )


def write_submission(
    path: Path,
    submission: pd.DataFrame,
    *,
    sample: pd.DataFrame | None,
    given_labels: Sequence[int],
    columns: manifests.Columns = manifests.COMPETITION,
) -> Path:
    """Check the submission, then write it whole or not at all.

    Paths that begin with `=`, `+`, `-` or `@` are written as they are, although a
    spreadsheet would read them as formulas: the board compares them as text.
    """
    check_submission(submission, sample, given_labels, columns)
    with workspace.atomic_path(path) as temporary:
        submission.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    return path
