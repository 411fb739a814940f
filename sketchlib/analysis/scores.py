"""What the probabilities are worth: scores, intervals, verdicts.

The metrics are scikit-learn's; ours is the joining (rows by `image_id`, columns by
class name), the intervals and the words. Intervals are 95 % percentile bootstraps
that draw whole groups, because copies of one drawing are not independent (Field and
Welsh 2007, "Bootstrapping clustered data"). Limits: they cover the choice of
pictures, not the luck of a training seed; two trainings of one recipe differ too.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, sparse, stats
from sklearn import metrics

from sketchlib.data import decisions
from sketchlib.data import manifest as manifests
from sketchlib.training.predictions import Predictions

ECE_BINS = 15  # Guo et al. 2017, "On calibration of modern neural networks"
_CHUNK = 100  # bootstrap draws held at once: 100 × 15,000 groups are 6 MB


# --- joining ----------------------------------------------------------------


@dataclass(frozen=True)
class Labelled:
    """Predictions beside the truth, columns in the manifest's class order.

    Attributes:
        image_ids: (N,) strings.
        classes: K class names.
        probs: (N, K) float64, rows sum to 1.
        truth: (N,) index of the true class.
        fold: (N,) fold each row was held out in, -1 where there is none.
    """

    image_ids: np.ndarray
    classes: list[str]
    probs: np.ndarray
    truth: np.ndarray
    fold: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(N,) index of the predicted class."""
        return self.probs.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels == self.truth


def join_labels(predictions: Predictions, manifest: pd.DataFrame) -> Labelled:
    """Predictions joined to their labels by `image_id` and class name.

    Pictures that the review dropped since the run are left out.

    Raises:
        ValueError: a predicted image has no label in `manifest`, the classes are not
            the manifest's, or the logits are probabilities.
    """
    classes = manifests.class_names(manifest)
    aligned = without_dropped(align_classes(predictions, classes), manifest)
    names = manifests.train_rows(manifest).set_index("image_id")["class_name"]
    rows = names.index.get_indexer(pd.Index(aligned.image_ids.astype(str)))
    if (rows < 0).any():
        raise ValueError(
            "every predicted image should have a label in the manifest, but "
            f"{name_some(aligned.image_ids[rows < 0])} have none; score `oof.npz` of "
            "the same data, not `test.npz`"
        )
    position = {name: index for index, name in enumerate(classes)}
    composed = [unicodedata.normalize("NFC", name) for name in names.iloc[rows]]
    truth = np.array([position[name] for name in composed], np.int64)
    return Labelled(aligned.image_ids, classes, aligned.probs, truth, aligned.fold)


def without_dropped(predictions: Predictions, manifest: pd.DataFrame) -> Predictions:
    """The predictions of pictures that no verdict of the review took out."""
    dropped = manifest.loc[manifest["subset"] == decisions.DROPPED, "image_id"]
    stays = ~np.isin(predictions.image_ids.astype(str), dropped.to_numpy(str))
    if stays.all():
        return predictions
    return take_images(predictions, predictions.image_ids[stays])


def align_classes(predictions: Predictions, classes: Sequence[str]) -> Predictions:
    """The same predictions with columns in the order of `classes`.

    Raises:
        ValueError: the two sets of classes differ, or the logits are probabilities.
    """
    check_logits(predictions)
    given = [unicodedata.normalize("NFC", str(name)) for name in predictions.classes]
    wanted = [unicodedata.normalize("NFC", str(name)) for name in classes]
    if given == wanted:
        return predictions
    extra, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if extra or missing or len(given) != len(set(given)):
        raise ValueError(
            f"predictions should be over the same {len(wanted)} classes, but "
            f"{len(given)} came: {name_some(extra)} should not be there and "
            f"{name_some(missing)} are missing; use runs made from the same train.csv"
        )
    order = [given.index(name) for name in wanted]
    return replace(
        predictions, classes=np.array(wanted), logits=predictions.logits[:, order]
    )


def check_logits(predictions: Predictions) -> None:
    """Raise ValueError where `logits` already are probabilities.

    Softmax over probabilities flattens them and hides it: the winner stays the same.
    """
    logits = predictions.logits
    if logits.shape[1] < 2 or not len(logits) or logits.min() < 0:
        return
    if np.abs(logits.sum(axis=1, dtype=np.float64) - 1).max() < 1e-3:
        raise ValueError(
            "`logits` should be scores before softmax, but every row lies in 0-1 and "
            "sums to 1, so they are probabilities; store their logarithm instead"
        )


def name_some(names: Sequence[Any] | np.ndarray) -> str:
    """How many, and the first three, for error messages."""
    shown = ", ".join(repr(str(name)) for name in list(names)[:3])
    if not shown:
        return "none"
    return f"{len(names)} ({shown}{', …' if len(names) > 3 else ''})"


# --- scores -----------------------------------------------------------------


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
    joined = join_labels(predictions, manifest)
    rows = []
    for fold in np.unique(joined.fold):
        here = joined.fold == fold
        part = replace(joined, probs=joined.probs[here], truth=joined.truth[here])
        rows.append({"fold": int(fold), "images": int(here.sum()), **_score(part)})
    return pd.DataFrame(rows)


def _score(joined: Labelled) -> dict[str, float]:
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
    joined = join_labels(predictions, manifest)
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
        "ece": _ece(_reliability(joined, ECE_BINS)),
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
        ends = wilson(np.array([value * groups]), np.array([groups]))
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
                f"`groups` should cover the predicted images, but {name_some(names)} "
                "have no group; take folds.csv of the same data"
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
    joined: Labelled, codes: np.ndarray, draws: int, seed: int
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


# --- calibration ------------------------------------------------------------


def reliability(
    predictions: Predictions, manifest: pd.DataFrame, bins: int = ECE_BINS
) -> pd.DataFrame:
    """How often a stated probability comes true.

    Returns:
        One row per non-empty bin of the top probability: from_probability,
        to_probability, images, confidence (mean), accuracy, and its 95 % Wilson
        interval low, high (all 0-1).
    """
    return _reliability(join_labels(predictions, manifest), bins)


def _reliability(joined: Labelled, bins: int) -> pd.DataFrame:
    confidence = joined.probs.max(axis=1)
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    table = pd.DataFrame(
        {"bin": place, "confidence": confidence, "right": joined.correct}
    )
    grouped = table.groupby("bin").agg(
        images=("right", "size"),
        confidence=("confidence", "mean"),
        accuracy=("right", "mean"),
        hits=("right", "sum"),
    )
    found = grouped.index.to_numpy()
    grouped.insert(0, "from_probability", edges[found])
    grouped.insert(1, "to_probability", edges[found + 1])
    bounds = wilson(grouped.pop("hits").to_numpy(), grouped["images"].to_numpy())
    return grouped.assign(low=bounds[0], high=bounds[1]).reset_index(drop=True)


def _ece(table: pd.DataFrame) -> float:
    """Expected calibration error: mean gap of stated and met probability, 0-1."""
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["images"]))


def wilson(hits: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % Wilson interval of shares `hits / images`, as (low, high)."""
    intervals = [
        stats.binomtest(int(hit), int(total)).proportion_ci(method="wilson")
        for hit, total in zip(hits, images, strict=True)
    ]
    return (
        np.array([interval.low for interval in intervals]),
        np.array([interval.high for interval in intervals]),
    )


def fit_temperature(predictions: Predictions, manifest: pd.DataFrame) -> float:
    """The temperature that makes out-of-fold log loss least; above 1 is overconfident.

    One number, so fitting and reading it on the same rows flatters by next to nothing.
    """
    joined = join_labels(predictions, manifest)
    logits = np.log(np.maximum(joined.probs, 1e-30))
    rows = np.arange(len(logits))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        picked = scaled[rows, joined.truth]
        return float((np.log(np.exp(scaled).sum(axis=1)) - picked).mean())

    bounds = (np.log(0.05), np.log(20.0))
    found = optimize.minimize_scalar(
        loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}
    )
    return float(np.exp(found.x))


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with logits divided by `temperature` (> 0)."""
    if not temperature > 0:
        raise ValueError(f"`temperature` should be above 0, but {temperature} came")
    scaled = (predictions.logits / temperature).astype(np.float32)
    return replace(predictions, logits=scaled)


# --- tables -----------------------------------------------------------------


def per_picture(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """One row per picture, most confident mistakes first, least sure hits last.

    Returns:
        image_id, class_name, predicted, correct, probability (of the predicted
        class), true_probability, fold.
    """
    joined = join_labels(predictions, manifest)
    names, rows = np.array(joined.classes), np.arange(len(joined.truth))
    table = pd.DataFrame(
        {
            "image_id": joined.image_ids.astype(str),
            "class_name": names[joined.truth],
            "predicted": names[joined.labels],
            "correct": joined.correct,
            "probability": joined.probs.max(axis=1),
            "true_probability": joined.probs[rows, joined.truth],
            "fold": joined.fold,
        }
    )
    return table.sort_values(
        ["correct", "probability", "image_id"], ascending=[True, False, True]
    ).reset_index(drop=True)


def per_class(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """Recall, precision and F1 of each class, the worst first.

    Returns:
        class_name, images, recall, precision, f1 (0-1; recall is NaN without
        images), most_confused_with (empty if nothing), share (0-1 of the class's
        images that went there).
    """
    joined = join_labels(predictions, manifest)
    numbers = list(range(len(joined.classes)))
    precision, recall, f1, images = metrics.precision_recall_fscore_support(
        joined.truth, joined.labels, labels=numbers, zero_division=0
    )
    errors = count_confusions(joined)
    np.fill_diagonal(errors, 0)
    thief, taken = errors.argmax(axis=1), errors.max(axis=1)
    names = np.array(joined.classes, object)
    table = pd.DataFrame(
        {
            "class_name": names,
            "images": images,
            "recall": np.where(images > 0, recall, np.nan),
            "precision": precision,
            "f1": f1,
            "most_confused_with": np.where(taken > 0, names[thief], ""),
            "share": taken / np.maximum(images, 1),
        }
    )
    return table.sort_values(["recall", "f1", "class_name"]).reset_index(drop=True)


def count_confusions(joined: Labelled) -> np.ndarray:
    """(K, K) pictures by true (row) and predicted (column) class."""
    numbers = list(range(len(joined.classes)))
    return metrics.confusion_matrix(joined.truth, joined.labels, labels=numbers)


def confusion(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """Pictures by true class (rows) and predicted class (columns), as counts."""
    joined = join_labels(predictions, manifest)
    return pd.DataFrame(count_confusions(joined), joined.classes, joined.classes)


def worst_pairs(
    predictions: Predictions, manifest: pd.DataFrame, top: int = 20
) -> pd.DataFrame:
    """The two-class mix-ups with the most pictures; see `rank_pairs`."""
    return rank_pairs(confusion(predictions, manifest), top)


def rank_pairs(counts: pd.DataFrame, top: int) -> pd.DataFrame:
    """The `top` pairs of classes with the most mistakes, both ways counted.

    Args:
        counts: (K, K) pictures by true row and predicted column.
        top: pairs kept.
    Returns:
        class_a, class_b, a_as_b, b_as_a, mistakes (pictures), share (0-1 of the
        pictures of both classes). `class_a` is the one that loses more.
    """
    values, names = counts.to_numpy(), counts.index.to_numpy(object)
    images = values.sum(axis=1)
    first, second = np.nonzero(np.triu(values + values.T, 1))
    swap = values[first, second] < values[second, first]
    a, b = np.where(swap, second, first), np.where(swap, first, second)
    mistakes = values[a, b] + values[b, a]
    table = pd.DataFrame(
        {
            "class_a": names[a],
            "class_b": names[b],
            "a_as_b": values[a, b],
            "b_as_a": values[b, a],
            "mistakes": mistakes,
            "share": mistakes / (images[a] + images[b]),
        }
    )
    order = ["mistakes", "share", "class_a", "class_b"]
    table = table.sort_values(order, ascending=[False, False, True, True])
    return table.head(top).reset_index(drop=True)


def zero_recall(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """Classes never found, with what took their place.

    Returns:
        class_name, images, taken_by, share (0-1 of the images that went there).
    """
    table = per_class(predictions, manifest)
    lost = table[table["recall"] == 0].rename(
        columns={"most_confused_with": "taken_by"}
    )
    columns = ["class_name", "images", "taken_by", "share"]
    lost = lost.sort_values(["images", "class_name"], ascending=[False, True])
    return lost[columns].reset_index(drop=True)


def by_flag(
    predictions: Predictions, manifest: pd.DataFrame, findings: pd.DataFrame
) -> pd.DataFrame:
    """Accuracy of the pictures that carry each data flag, the worst first.

    Args:
        predictions: out-of-fold.
        manifest: every predicted image must have a label in it.
        findings: `image_id` and `flags`, joined by `;`, of every predicted image.
    Returns:
        flag, images, accuracy, low, high (95 % Wilson), others (accuracy of the
        pictures without it), gap (accuracy − others). Rows `(no flag)` and `(all)`
        come last.
    """
    joined = join_labels(predictions, manifest)
    known = findings.drop_duplicates("image_id").set_index("image_id")["flags"]
    absent = ~np.isin(joined.image_ids.astype(str), known.index.to_numpy(str))
    if absent.any():
        raise ValueError(
            "every predicted image should be in the findings, but "
            f"{name_some(joined.image_ids[absent])} are not; run 01_eda on this data"
        )
    flags = known.reindex(joined.image_ids.astype(str)).fillna("").astype(str)
    sets = [set(filter(None, text.split(";"))) for text in flags]
    members = {
        flag: np.array([flag in found for found in sets])
        for flag in sorted(set().union(*sets))
    }
    table = _score_parts(members, joined.correct).sort_values(["accuracy", "flag"])
    plain = np.array([not found for found in sets])
    rest = _score_parts({"(no flag)": plain, "(all)": plain | True}, joined.correct)
    return pd.concat([table, rest[rest["images"] > 0]], ignore_index=True)


def _score_parts(parts: dict[str, np.ndarray], correct: np.ndarray) -> pd.DataFrame:
    """Accuracy with interval inside each part, and of the pictures outside it."""
    names = ["flag", "images", "accuracy", "low", "high", "others", "gap"]
    rows = []
    for name, inside in parts.items():
        if not inside.any():
            continue
        hits, images = int(correct[inside].sum()), int(inside.sum())
        low, high = wilson(np.array([hits]), np.array([images]))
        others = float(correct[~inside].mean()) if (~inside).any() else float("nan")
        share = hits / images
        rows.append((name, images, share, low[0], high[0], others, share - others))
    return pd.DataFrame(rows, columns=names)


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
    left, right = _pair(a, b, manifest, shared_only)
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


def _pair(
    a: Predictions, b: Predictions, manifest: pd.DataFrame, shared_only: bool
) -> tuple[Labelled, Labelled]:
    """Both runs joined to their labels, rows in the order of `a`."""
    if shared_only:
        a, b = take_images(a, b.image_ids), take_images(b, a.image_ids)
    check_same_images({"a": a, "b": b})
    b = take_images(b, a.image_ids)
    check_same_folds({"a": a, "b": b})
    return join_labels(a, manifest), join_labels(b, manifest)


def take_images(predictions: Predictions, image_ids: np.ndarray) -> Predictions:
    """The rows named by `image_ids`, in that order; ids that are not there are left.

    Raises:
        ValueError: none of them is there.
    """
    rows = pd.Index(predictions.image_ids.astype(str)).get_indexer(
        pd.Index(np.asarray(image_ids).astype(str))
    )
    rows = rows[rows >= 0]
    if np.array_equal(rows, np.arange(len(predictions.image_ids))):
        return predictions  # the same order: 40 runs of 30 MB are not copied
    if not len(rows):
        raise ValueError(
            "the runs should share pictures, but have none in common; use runs on the "
            "same data"
        )
    return Predictions(
        predictions.image_ids[rows],
        predictions.classes,
        predictions.logits[rows],
        predictions.fold[rows],
    )


def check_same_images(runs: dict[str, Predictions]) -> None:
    """Raise ValueError, naming the difference, unless all predict the same images."""
    first, *others = runs
    expected = runs[first].image_ids.astype(str)
    for name in others:
        given = runs[name].image_ids.astype(str)
        more, less = np.setdiff1d(given, expected), np.setdiff1d(expected, given)
        if len(more) or len(less):
            raise ValueError(
                f"runs should predict the same images, but `{first}` and `{name}` "
                f"differ: only in `{first}` {name_some(less)}, only in `{name}` "
                f"{name_some(more)}; use runs on the same data"
            )


def check_same_folds(runs: dict[str, Predictions]) -> None:
    """Raise ValueError unless each image was held out in the same fold everywhere.

    Rows must be in the same order.
    """
    first, *others = runs
    for name in others:
        differs = runs[name].fold != runs[first].fold
        if differs.any():
            row = int(differs.argmax())
            raise ValueError(
                f"runs should use the same folds, but `{first}` and `{name}` differ on "
                f"{int(differs.sum())} of {len(differs)} images: "
                f"{str(runs[first].image_ids[row])!r} is in fold "
                f"{int(runs[first].fold[row])} of one and {int(runs[name].fold[row])} "
                "of the other; train both with the same folds.csv"
            )


def compare_classes(
    a: Predictions,
    b: Predictions,
    manifest: pd.DataFrame,
    *,
    shared_only: bool = False,
) -> pd.DataFrame:
    """Pictures won and lost in each class when b replaces a, biggest loss first.

    Returns:
        class_name, images, gained, lost, net (pictures), recall_a, recall_b (0-1).
    """
    left, right = _pair(a, b, manifest, shared_only)
    table = pd.DataFrame(
        {
            "class_name": np.array(left.classes, object)[left.truth],
            "gained": right.correct & ~left.correct,
            "lost": left.correct & ~right.correct,
            "recall_a": left.correct,
            "recall_b": right.correct,
        }
    )
    grouped = table.groupby("class_name")
    result = grouped[["gained", "lost"]].sum().astype(int)
    result.insert(0, "images", grouped.size())
    result["net"] = result["gained"] - result["lost"]
    result[["recall_a", "recall_b"]] = grouped[["recall_a", "recall_b"]].mean()
    return result.reset_index().sort_values(["net", "class_name"], ignore_index=True)


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
