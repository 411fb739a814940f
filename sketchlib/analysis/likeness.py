"""What frozen features say about the data: likeness of pictures, classes and subsets.

The backbone is a small pretrained network that has seen none of these drawings; its
features are computed once and kept. Copies never vouch for each other: neighbours
come from other groups. Limits: it sees what its pretraining taught it to see, so a
finding is a question for the reviewer and never a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from sketchlib.analysis import scores
from sketchlib.data import cache
from sketchlib.training import compute, features, models

ALPHA = 300.0  # ridge penalty on standardised features; flat between 100 and 1,000
_BLOCK = 512  # rows of likeness held at once: 512 × 25,000 floats are 50 MB


def look(pixels: cache.PixelCache, model: str, cache_dir: Path) -> np.ndarray:
    """(N, D) float32 features of every cached picture, standardised.

    Args:
        pixels: N pictures.
        model: a timm name with weights at hand, see `sketch models`; empty for the
            pixels themselves, a coarse stand-in where there are no weights.
        cache_dir: safe to delete.
    """
    if not model:
        small = [cv2.resize(np.array(one), (16, 16)).ravel() for one in pixels.pixels]
        return StandardScaler().fit_transform(np.array(small, np.float32))
    side_px = pixels.geometry.side_px
    network = models.make_model(model, 0, "auto", side_px=side_px)
    way = compute.Compute(compute.find_device(), "fp32", "channels_last", 0.0)
    found = features.extract(
        network, pixels, way, views=(), name=model, cache_dir=cache_dir
    )
    standard = StandardScaler().fit_transform(found[0].astype(np.float32))
    return standard.astype(np.float32)


# --- neighbours ---------------------------------------------------------------------


def find_neighbours(
    seen: np.ndarray, groups: Sequence[str], *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The most alike rows of other groups, by cosine.

    Args:
        seen: (N, D) features.
        groups: (N,) group names; rows of one group are never neighbours.
        count: neighbours of each row.
    Returns:
        (N, count) row numbers and (N, count) cosines, the most alike first.
    """
    unit = seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-9)
    codes = np.unique(np.asarray(groups, str), return_inverse=True)[1]
    count = min(count, len(unit) - 1)
    rows = np.empty((len(unit), count), np.int64)
    likeness = np.empty((len(unit), count), np.float32)
    for start in range(0, len(unit), _BLOCK):
        part = slice(start, start + _BLOCK)
        cosine = unit[part] @ unit.T  # (B, N)
        cosine[codes[part, None] == codes[None, :]] = -2.0
        top = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
        found = np.take_along_axis(cosine, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows[part] = np.take_along_axis(top, order, axis=1)
        likeness[part] = np.take_along_axis(found, order, axis=1)
    return rows, likeness


def suspect_labels(table: pd.DataFrame, near: np.ndarray) -> pd.DataFrame:
    """Pictures whose neighbours agree on another class, the surest first.

    Args:
        table: training rows, `image_id, class_name`, in the order of `near`.
        near: (N, k) of `find_neighbours`.
    Returns:
        `image_id, class_name, suggestion, own, other, suspicion, source`: shares of
        the neighbours in the own class and in the most frequent other one, and their
        difference; rows with a positive one. The source is `neighbours`.
    """
    names, codes = np.unique(table["class_name"].to_numpy(str), return_inverse=True)
    votes = np.zeros((len(codes), len(names)), np.float32)
    np.add.at(votes, (np.arange(len(codes))[:, None], codes[near]), 1 / near.shape[1])
    own = votes[np.arange(len(codes)), codes].copy()
    votes[np.arange(len(codes)), codes] = -1
    best = votes.argmax(axis=1)
    other = votes[np.arange(len(codes)), best]
    found = table[["image_id", "class_name"]].assign(
        suggestion=names[best], own=own, other=other, suspicion=other - own
    )
    found = found[found["suspicion"] > 0].assign(source="neighbours")
    return found.sort_values(["suspicion", "image_id"], ascending=[False, True])


def twin_classes(
    table: pd.DataFrame, near: np.ndarray, *, confused: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Pairs of classes whose drawings are each other's neighbours.

    Args:
        table: training rows, `class_name`, in the order of `near`.
        near: (N, k) of `find_neighbours`.
        confused: `class_name, predicted` and a share of mistakes `rate`, of a run;
            its rows mark what a trained model mixes up as well.
    Returns:
        `class_a, class_b, mixing` (mean share of the neighbours of either class that
        are of the other, 0-1) and `confusion` (0-1, NaN without a run), the most
        mixed first.
    """
    names, codes = np.unique(table["class_name"].to_numpy(str), return_inverse=True)
    size = len(names)
    pairs = codes[:, None] * size + codes[near]
    counts = np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    mixing = (shares + shares.T) / 2
    a, b = np.triu_indices(size, 1)
    found = pd.DataFrame(
        {"class_a": names[a], "class_b": names[b], "mixing": mixing[a, b]}
    )
    found["confusion"] = np.nan
    if confused is not None and len(confused):
        rate = _pair_rates(confused)
        keys = zip(found["class_a"], found["class_b"], strict=True)
        found["confusion"] = [rate.get(frozenset(key), 0.0) for key in keys]
    found = found[(found["mixing"] > 0) | (found["confusion"] > 0)]
    rank = found["mixing"] + found["confusion"].fillna(0)
    return found.loc[rank.sort_values(ascending=False, kind="stable").index]


def rate_confusions(counts: pd.DataFrame) -> pd.DataFrame:
    """`class_name, predicted, rate` of a square table of counts, true classes rows."""
    rates = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    rows, columns = np.nonzero(rates * (1 - np.eye(len(rates))))
    return pd.DataFrame(
        {
            "class_name": counts.index.to_numpy()[rows],
            "predicted": counts.columns.to_numpy()[columns],
            "rate": rates[rows, columns],
        }
    )


def _pair_rates(confused: pd.DataFrame) -> dict[frozenset[str], float]:
    """Mean of both directions' share of mistakes, by pair of classes."""
    rates: dict[frozenset[str], float] = {}
    for row in confused.itertuples():
        key = frozenset((str(row.class_name), str(row.predicted)))
        rates[key] = rates.get(key, 0.0) + float(row.rate) / 2  # type: ignore[arg-type]
    return rates


# --- train against test -------------------------------------------------------------


@dataclass(frozen=True)
class Likeness:
    """How well train and test can be told apart.

    Attributes:
        auc: 0.5 where they cannot, 1 where every picture gives itself away.
        low: 95 % interval, groups of copies drawn whole.
        high: its other end.
        scores: (N,) out-of-fold, higher is more test-like.
    """

    auc: float
    low: float
    high: float
    scores: np.ndarray

    @property
    def text(self) -> str:
        """The finding in one sentence."""
        told = f"AUC {self.auc:.2f} (95 % interval {self.low:.2f} – {self.high:.2f})"
        if self.low > 0.5:
            return f"train and test differ: {told}; a fold is not a small test set"
        return f"train and test cannot be told apart: {told}"


def compare_subsets(
    seen: np.ndarray,
    is_test: np.ndarray,
    groups: Sequence[str],
    *,
    seed: int,
    draws: int = 300,
) -> Likeness:
    """Adversarial validation: can a linear model tell test from train pictures?

    Scored out of fold on folds that keep groups whole, or a copy on the other side
    would give a picture away.

    Args:
        seen: (N, D) standardised features.
        is_test: (N,) bool, both occurring.
        groups: (N,) group names.
        seed: of folds and bootstrap.
        draws: bootstrap draws.
    """
    codes = np.unique(np.asarray(groups, str), return_inverse=True)[1]
    found = np.zeros(len(seen))
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for train, held in splitter.split(seen, is_test, codes):
        model = Ridge(ALPHA * 10).fit(seen[train], is_test[train].astype(float))
        found[held] = model.predict(seen[held]) - is_test[train].mean()
    rng = np.random.default_rng(seed)
    members = pd.Series(np.arange(len(codes))).groupby(codes).indices
    parts = [members[code] for code in range(len(members))]
    sampled = []
    for _ in range(draws):
        rows = np.concatenate(
            [parts[n] for n in rng.integers(0, len(parts), len(parts))]
        )
        if 0 < is_test[rows].mean() < 1:
            sampled.append(roc_auc_score(is_test[rows], found[rows]))
    auc = float(roc_auc_score(is_test, found))
    low, high = np.quantile(sampled, [0.025, 0.975])
    return Likeness(auc, float(low), float(high), found)


# --- a linear probe in closed form --------------------------------------------------


def probe(
    seen: np.ndarray,
    targets: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """(N,) predicted classes, out of fold, of a ridge regression on the targets.

    A linear probe like logistic regression, but seconds at 500 classes; soft targets
    and weights come free.

    Args:
        seen: (N, D) standardised features.
        targets: (N, K) rows that sum to 1; argmax of the prediction is the class.
        fold: (N,) fold of each row, below 0 for rows that only train.
        weights: (N,) of training rows; 0 leaves a row out.
    """
    weights = np.ones(len(seen)) if weights is None else weights
    predicted = np.full(len(seen), -1)
    for number in range(int(fold.max()) + 1):
        held = fold == number
        used = ~held & (weights > 0)
        model = Ridge(ALPHA, solver="cholesky", copy_X=True)
        model.fit(seen[used], targets[used], sample_weight=weights[used])
        predicted[held] = model.predict(seen[held]).argmax(axis=1)
    return predicted


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(N, K) float32 targets."""
    return np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]


def accuracy(right: np.ndarray, codes: np.ndarray, *, seed: int) -> dict[str, float]:
    """accuracy, low and high (95 %, groups drawn whole) of (N,) hits in 0-1."""
    sampled = scores.bootstrap_means(right[None].astype(float), codes, seed=seed)[0]
    low, high = np.quantile(sampled, [0.025, 0.975])
    return {"accuracy": float(right.mean()), "low": float(low), "high": float(high)}
