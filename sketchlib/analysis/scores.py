"""What the probabilities are worth: scores, intervals, verdicts.

The metrics are scikit-learn's; ours is the joining (rows by `image_id`, columns by
class name), the intervals and the words. Intervals are 95 % percentile bootstraps
that draw whole groups, because copies of one drawing are not independent (Field and
Welsh 2007, "Bootstrapping clustered data"). Limits: they cover the choice of
pictures, not the luck of a training seed; two trainings of one recipe differ too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import sparse, stats
from sklearn import metrics

from sketchlib.analysis import calibration, joining
from sketchlib.training.predictions import Predictions

_CHUNK = 100  # bootstrap draws held at once: 100 × 15,000 groups are 6 MB


def score_folds(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """Accuracy, top-5, macro F1 and log loss of each fold.

    Pooling folds before scoring hides their spread; see scikit-learn,
    `plot_cv_predict`.

    Args:
        predictions: out-of-fold; `fold` says where each row was held out.
        manifest: every predicted image must have a label in it.
    Returns:
        One row per fold: fold, images, accuracy, top5, macro_f1 (all 0-1), log_loss
        (nats).
    """
    joined = joining.join_labels(predictions, manifest)
    rows = []
    for fold in np.unique(joined.fold):
        here = joined.fold == fold
        part = replace(joined, probs=joined.probs[here], truth=joined.truth[here])
        rows.append({"fold": int(fold), "images": int(here.sum()), **_score(part)})
    return pd.DataFrame(rows)


def _score(joined: joining.Labelled) -> dict[str, float]:
    """The four plain scores of one set of rows."""
    truth, probs = joined.truth, joined.probs
    labels = list(range(probs.shape[1]))
    return {
        "accuracy": float(metrics.accuracy_score(truth, joined.labels)),
        "top5": float(_top_hits(probs, truth, 5).mean()),
        "macro_f1": float(
            metrics.f1_score(truth, joined.labels, average="macro", zero_division=0)
        ),
        "log_loss": float(metrics.log_loss(truth, probs, labels=labels)),
    }


def _top_hits(probs: np.ndarray, truth: np.ndarray, top: int) -> np.ndarray:
    """(N,) chance in 0-1 that the truth is among the `top`, ties drawn by lot.

    Without ties this is scikit-learn's top_k_accuracy_score, which otherwise lets
    the larger class number win; a hard vote is full of ties.
    """
    own = probs[np.arange(len(truth)), truth][:, None]  # (N, 1)
    above, tied = (probs > own).sum(axis=1), (probs == own).sum(axis=1)
    return np.clip((top - above) / tied, 0, 1)


def summarise(
    predictions: Predictions,
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """One run in a dozen numbers.

    Args:
        predictions: out-of-fold.
        manifest: every predicted image must have a label in it.
        groups: `image_id, group`; groups are drawn whole. None: each picture alone.
        draws: bootstrap draws.
        seed: of the bootstrap.
    Returns:
        accuracy and macro_f1 (0-1) with `_low` and `_high` (95 %); top5 (0-1),
        log_loss (nats), ece (0-1); fold_sd, the standard deviation of accuracy over
        folds, NaN where there is one fold; images, classes, groups, folds.
    """
    joined = joining.join_labels(predictions, manifest)
    codes = group_codes(joined.image_ids, groups)
    plain = _score(joined)
    sampled = _bootstrap(joined, codes, draws, seed)
    folds = score_folds(predictions, manifest)["accuracy"]
    groups_found = int(codes.max()) + 1
    return {
        **_with_interval("accuracy", plain["accuracy"], sampled[0], groups_found),
        **_with_interval("macro_f1", plain["macro_f1"], sampled[1], groups_found),
        "top5": plain["top5"],
        "log_loss": plain["log_loss"],
        "ece": calibration.ece(calibration.tabulate(joined, calibration.ECE_BINS)),
        "fold_sd": float(folds.std(ddof=1)) if len(folds) > 1 else float("nan"),
        "images": len(joined.truth),
        "classes": len(joined.classes),
        "groups": groups_found,
        "folds": len(folds),
    }


def _with_interval(
    name: str, value: float, sampled: np.ndarray, groups: int
) -> dict[str, float]:
    """A score with `_low` and `_high`.

    The draws are centred on the value: a resample repeats pictures of small classes,
    which lowers macro F1 by about half an interval at 30 pictures a class. Where all
    is right or all wrong they know no spread, so Wilson's interval over the groups
    stands in.
    """
    low, high = np.quantile(sampled - sampled.mean() + value, [0.025, 0.975])
    if value in (0.0, 1.0):
        ends = calibration.wilson(np.array([value * groups]), np.array([groups]))
        low, high = ends[0][0], ends[1][0]
    ends_01 = np.clip([low, high], 0, 1)
    return {
        name: value,
        f"{name}_low": float(ends_01[0]),
        f"{name}_high": float(ends_01[1]),
    }


def group_codes(image_ids: np.ndarray, groups: pd.DataFrame | None) -> np.ndarray:
    """(N,) group number 0..G-1 of each image, the same whatever the row order.

    Images without an entry are their own group, as in `splits.make_folds`.

    Raises:
        ValueError: not one image has a group.
    """
    names = image_ids.astype(str)
    if groups is not None:
        known = groups.drop_duplicates("image_id").set_index("image_id")["group"]
        found = known.reindex(names)
        if found.isna().all():
            raise ValueError(
                "`groups` should cover the predicted images, but "
                f"{joining.name_some(names)} have no group; take folds.csv of the "
                "same data"
            )
        missing = found.isna().to_numpy()
        # A prefix keeps a picture's name from being some group's name.
        names = np.where(missing, "image " + names.astype(object), found.astype(str))
    return np.unique(names.astype(str), return_inverse=True)[1]


def _draw_groups(groups: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks (G, ≤100) of how often each group was drawn, with replacement."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, _CHUNK):
        size = min(_CHUNK, draws - start)
        picks = rng.integers(0, groups, (size, groups))
        picks += np.arange(size)[:, None] * groups  # one counting pass for the block
        counts = np.bincount(picks.ravel(), minlength=size * groups)
        yield counts.reshape(size, groups).T.astype(np.float64)


def _bootstrap(
    joined: joining.Labelled, codes: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(draws,) accuracies and (draws,) macro F1s of resampled groups.

    Sums over pictures are sparse products classes × groups × draws, so a draw costs
    one pass over the pictures and never a new confusion matrix.
    """
    shape = (len(joined.classes), int(codes.max()) + 1)

    def count(classes: np.ndarray, weight: np.ndarray) -> sparse.csr_array:
        return sparse.csr_array((weight, (classes, codes)), shape=shape)

    ones = np.ones(len(codes))
    hits = count(joined.truth, joined.correct.astype(np.float64))
    true, named = count(joined.truth, ones), count(joined.labels, ones)
    accuracies, f1s = [], []
    for drawn in _draw_groups(shape[1], draws, seed):
        right, real, both = hits @ drawn, true @ drawn, (true + named) @ drawn  # (K, D)
        accuracies.append(right.sum(axis=0) / real.sum(axis=0))
        present = both > 0  # as scikit-learn: classes that occur, true or predicted
        f1 = np.divide(2 * right, both, out=np.zeros_like(both), where=present)
        f1s.append(f1.sum(axis=0) / present.sum(axis=0))
    return np.concatenate(accuracies), np.concatenate(f1s)


# --- two runs ---------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Run b against run a on the same pictures.

    Attributes:
        accuracy_a: 0-1.
        accuracy_b: 0-1.
        gain: accuracy_b − accuracy_a.
        low: lower end of the gain's 95 % paired bootstrap interval.
        high: its upper end.
        p_value: exact McNemar test, two-sided.
        gained: pictures b has right and a wrong.
        lost: pictures a has right and b wrong.
        images: pictures compared.
        verdict: `better`, `worse` or `cannot tell yet`, said of b.
    """

    accuracy_a: float
    accuracy_b: float
    gain: float
    low: float
    high: float
    p_value: float
    gained: int
    lost: int
    images: int
    verdict: str

    @property
    def text(self) -> str:
        """The verdict and its grounds in one sentence."""
        return (
            f"{self.verdict}: {100 * self.gain:+.1f} points of accuracy (95 % "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f}) on {self.images:,} "
            f"pictures; {self.gained:,} gained, {self.lost:,} lost, "
            f"McNemar p = {self.p_value:.2g}"
        )


def compare(
    a: Predictions,
    b: Predictions,
    manifest: pd.DataFrame,
    groups: pd.DataFrame | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    shared_only: bool = False,
) -> Comparison:
    """Is run b better than run a on the same pictures?

    `better` or `worse` needs both the interval clear of 0 and McNemar's p under 0.05:
    with a handful of differing pictures the bootstrap alone is too sure.

    Args:
        a: the baseline.
        b: the challenger.
        manifest: every compared image must have a label in it.
        groups: `image_id, group`; groups are drawn whole. None: each picture alone.
        draws: bootstrap draws.
        seed: of the bootstrap.
        shared_only: compare on the pictures both predicted, instead of refusing.
    Raises:
        ValueError: different pictures or folds, with the difference named.
    """
    left, right = pair(a, b, manifest, shared_only)
    codes = group_codes(left.image_ids, groups)
    (row,) = paired_gains(
        left.correct, right.correct[None], codes, draws=draws, seed=seed
    ).to_dict("records")
    return Comparison(
        accuracy_a=float(left.correct.mean()),
        accuracy_b=float(right.correct.mean()),
        images=len(codes),
        **{str(name): value for name, value in row.items()},
    )


def paired_gains(
    reference: np.ndarray,
    others: np.ndarray,
    codes: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Several runs against one on the same pictures, with the same drawn groups.

    Args:
        reference: (N,) bool, where the reference is right.
        others: (R, N) bool, where each other run is right.
        codes: (N,) group numbers, `group_codes`.
        draws: bootstrap draws.
        seed: of the bootstrap.
    Returns:
        R rows: gain (accuracy, -1 to 1), low, high (95 %), p_value (McNemar),
        gained, lost (pictures), verdict.
    """
    change = others.astype(np.float64) - reference  # (R, N)
    sampled = bootstrap_means(change, codes, draws=draws, seed=seed)
    lows, highs = np.quantile(sampled, [0.025, 0.975], axis=1)
    rows = []
    for row, low, high in zip(change, lows.tolist(), highs.tolist(), strict=True):
        gained, lost = int((row > 0).sum()), int((row < 0).sum())
        p_value = _mcnemar(gained, lost)
        verdict = _judge(low, high, p_value)
        gain = (gained - lost) / len(row)
        rows.append((gain, low, high, p_value, gained, lost, verdict))
    names = ["gain", "low", "high", "p_value", "gained", "lost", "verdict"]
    return pd.DataFrame(rows, columns=names)


def bootstrap_means(
    values: np.ndarray, codes: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """(R, draws) means of each row of `values` (R, N) when groups are redrawn."""
    groups = int(codes.max()) + 1
    sizes = np.bincount(codes, minlength=groups).astype(np.float64)
    sums = np.array([np.bincount(codes, row, minlength=groups) for row in values])
    blocks = _draw_groups(groups, draws, seed)
    return np.concatenate([sums @ drawn / (sizes @ drawn) for drawn in blocks], axis=1)


def _mcnemar(gained: int, lost: int) -> float:
    """Exact p that gains and losses are equally likely; 1 where nothing changed."""
    return (
        float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    )


def _judge(low: float, high: float, p_value: float) -> str:
    if p_value >= 0.05 or low <= 0 <= high:
        return "cannot tell yet"
    return "better" if low > 0 else "worse"


def pair(
    a: Predictions, b: Predictions, manifest: pd.DataFrame, shared_only: bool
) -> tuple[joining.Labelled, joining.Labelled]:
    """Both runs joined to their labels, rows in the order of `a`."""
    if shared_only:
        a, b = joining.take_images(a, b.image_ids), joining.take_images(b, a.image_ids)
    joining.check_same_images({"a": a, "b": b})
    b = joining.take_images(b, a.image_ids)
    joining.check_same_folds({"a": a, "b": b})
    return joining.join_labels(a, manifest), joining.join_labels(b, manifest)


def make_ladder(summaries: Mapping[str, Mapping[str, float] | None]) -> pd.DataFrame:
    """Runs as rows for `plots.plot_score_ladder`; those without scores are left out.

    Args:
        summaries: `summarise(...)` by name, as `run.json` keeps them.
    Returns:
        name, mean, low, high (accuracy, 0-1), in the order given.
    """
    columns = {"mean": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
    rows = [
        {"name": name} | {key: found[column] for key, column in columns.items()}
        for name, found in summaries.items()
        if found
    ]
    return pd.DataFrame(rows, columns=["name", *columns])
