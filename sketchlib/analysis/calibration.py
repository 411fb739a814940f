"""Whether stated probabilities come true, and the temperature that mends them.

Guo et al. 2017, "On calibration of modern neural networks". Limits: one temperature
for all classes; a model sure of one class and modest on another stays so.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import optimize, stats

from sketchlib.analysis import joining
from sketchlib.training.predictions import Predictions

ECE_BINS = 15  # as in the paper


def reliability(
    predictions: Predictions, manifest: pd.DataFrame, bins: int = ECE_BINS
) -> pd.DataFrame:
    """How often a stated probability comes true.

    Returns:
        One row per non-empty bin of the top probability: from_probability,
        to_probability, images, confidence (mean), accuracy, and its 95 % Wilson
        interval low, high (all 0-1).
    """
    return tabulate(joining.join_labels(predictions, manifest), bins)


def tabulate(joined: joining.Labelled, bins: int) -> pd.DataFrame:
    """`reliability` of rows that are joined to their labels already."""
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


def ece(table: pd.DataFrame) -> float:
    """Expected calibration error: mean gap of stated and met probability, 0-1."""
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gaps, weights=table["images"]))


def error(predictions: Predictions, manifest: pd.DataFrame) -> float:
    """Expected calibration error, 0-1."""
    return ece(reliability(predictions, manifest))


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
    joined = joining.join_labels(predictions, manifest)
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


def calibrate(predictions: Predictions, manifest: pd.DataFrame) -> Predictions:
    """Each fold's logits divided by the temperature of the other folds.

    With a single fold the temperature is fitted on its own rows: one number flatters
    by next to nothing.
    """
    logits = predictions.logits.astype(np.float32)
    folds = np.unique(predictions.fold)
    for fold in folds:
        held = predictions.fold == fold
        others = ~held if len(folds) > 1 else held
        temperature = fit_temperature(
            joining.take_images(predictions, predictions.image_ids[others]), manifest
        )
        logits[held] /= temperature
    return replace(predictions, logits=logits)


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with logits divided by `temperature` (> 0)."""
    if not temperature > 0:
        raise ValueError(f"`temperature` should be above 0, but {temperature} came")
    scaled = (predictions.logits / temperature).astype(np.float32)
    return replace(predictions, logits=scaled)
