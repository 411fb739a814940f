"""Frozen features, computed once, and the linear probe on top of them.

A frozen backbone gives the same features for the same picture, so they are kept as a
memory-mapped float16 array with the views (as it is, flipped) stacked; every head,
fold and seed on top takes seconds. Limits: float16 keeps three digits, which a
linear head does not notice.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from sketchlib import workspace
from sketchlib.data import cache
from sketchlib.training import compute, datasets, heads, kernels, models, viewing
from sketchlib.training.predictions import Predictions, average


def extract(
    model: nn.Module,
    pixels: cache.PixelCache,
    way: compute.Compute,
    *,
    views: Sequence[str],
    name: str,
    cache_dir: Path,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Features of every row of `pixels`, read from `cache_dir` when they are there.

    Args:
        model: without a classifier (`make_model(..., classes=0)`).
        pixels: N pictures.
        way: precision, layout and device.
        views: views beside the upright one: see `viewing.KINDS`.
        name: of the model and its weights; part of the file's key.
        cache_dir: safe to delete.
        progress: called with (done, N).
    Returns:
        (V, N, D) float16, memory-mapped; V is 1 + the number of views.
    """
    seen = viewing.spell(views)
    asked = {
        "model": name,
        "weights": workspace.hash_value(
            [float(weight.double().sum()) for weight in model.state_dict().values()]
        ),
        "views": ["upright", *seen],
        "stats": [value.tolist() for value in models.input_stats(model)],
        "geometry": asdict(pixels.geometry),
        "pixels": Path(str(getattr(pixels.pixels, "filename", ""))).name,
        "precision": way.precision,
    }
    stem = cache_dir / f"features-{workspace.hash_value(asked)}"
    if not stem.with_suffix(".npy").exists():
        found = _compute(model, pixels, way, seen, progress)
        with workspace.atomic_path(stem.with_suffix(".npy")) as temporary:
            np.save(temporary, found)
        workspace.write_json(stem.with_suffix(".json"), asked)
    return np.load(stem.with_suffix(".npy"), mmap_mode="r")


@torch.inference_mode()
def _compute(
    model: nn.Module,
    pixels: cache.PixelCache,
    way: compute.Compute,
    views: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """(V, N, D) float16."""
    mean, std = (value.to(way.device) for value in models.input_stats(model))
    quick = way.place(kernels.fold_for_inference(model, pixels.geometry.side_px))
    total, parts = len(pixels.pixels), []
    for start in range(0, total, 64):
        images = datasets.as_batch(pixels.pixels[start : start + 64]).to(way.device)
        seen = [images, *(viewing.look(images, view) for view in views)]
        inputs = [datasets.to_input(each, mean, std) for each in seen]
        with way.autocast():
            found = [
                quick(each.contiguous(memory_format=way.memory_format))
                for each in inputs
            ]
        parts.append(torch.stack(found).float().cpu().numpy().astype(np.float16))
        if progress:
            progress(min(start + 64, total), total)
    return np.concatenate(parts, axis=1)


def probe_folds(
    features: np.ndarray,
    labels: np.ndarray,
    folds: pd.DataFrame,
    classes: Sequence[str],
    *,
    strength: float = 0.01,
) -> Predictions:
    """Out-of-fold predictions of a linear head on frozen features.

    Multinomial logistic regression (scikit-learn) on standardised features; trained
    on every view, scored as the mean over the views.

    Args:
        features: (V, N, D), rows in the order of `folds`.
        labels: (N,) class numbers.
        folds: `image_id, fold`; a fold below 0 only trains.
        classes: K names.
        strength: inverse regularisation C, > 0.
    Returns:
        Rows of all held-out folds, in the order of `folds`.
    """
    fold = folds["fold"].to_numpy()
    ids = folds["image_id"].to_numpy()
    logits = np.full((len(fold), len(classes)), -50.0, np.float32)
    for number in sorted(set(fold[fold >= 0])):
        held = fold == number
        head = fit_probe(features[:, ~held], labels[~held], strength)
        views = [predict_probe(head, view[held], len(classes)) for view in features]
        parts = [
            Predictions(ids[held], np.asarray(classes), view, fold[held])
            for view in views
        ]
        logits[held] = average(parts).logits
    scored = fold >= 0
    return Predictions(ids[scored], np.asarray(classes), logits[scored], fold[scored])


Head = tuple[StandardScaler, LogisticRegression]


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    strength: float,
    weights: np.ndarray | None = None,
) -> Head:
    """A linear head on (V, N, D) features with (N,) labels and weights (ones)."""
    views, _, width = features.shape
    flat = features.reshape(-1, width).astype(np.float32)
    scaler = StandardScaler().fit(flat)
    head = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    counts = None if weights is None else np.tile(weights, views)
    return scaler, head.fit(scaler.transform(flat), np.tile(labels, views), counts)


def start_head(model: nn.Module, head: Head) -> None:
    """Put a fitted probe into the model's classifier, the scaling folded in.

    Fine-tuning then starts where the probe ends, instead of tearing the backbone
    apart to please a random classifier (Kumar et al. 2022, LP-FT).

    Raises:
        ValueError: the classifier is no linear layer of the features' width.
    """
    name = heads.classifier_name(model)
    layer = model.get_submodule(name) if name else None
    start_layer(layer, head)


def start_layer(
    layer: nn.Module | None, head: Head, outputs: range | None = None
) -> None:
    """Put a fitted probe into some outputs of a linear layer, None for all of them.

    Raises:
        ValueError: as `start_head`.
    """
    scaler, regression = head
    width = len(scaler.mean_)
    if not isinstance(layer, nn.Linear) or layer.in_features != width:
        raise ValueError(
            f"`head` probe needs a linear classifier on {width} features, but this "
            f"model ends in {layer}; use `head` random"
        )
    scores = regression.coef_ / scaler.scale_
    offsets = regression.intercept_ - scores @ scaler.mean_
    if len(scores) == 1:  # two classes have one score
        scores = np.concatenate([-scores / 2, scores / 2])
        offsets = np.concatenate([-offsets / 2, offsets / 2])
    own = outputs or range(layer.out_features)
    with torch.no_grad():
        layer.weight[list(own)] = 0.0
        layer.bias[list(own)] = float(offsets.min()) - 3.0  # what the probe never saw
        seen = torch.as_tensor(regression.classes_) + own.start
        layer.weight[seen] = torch.as_tensor(scores, dtype=layer.weight.dtype)
        layer.bias[seen] = torch.as_tensor(offsets, dtype=layer.bias.dtype)


def predict_probe(head: Head, features: np.ndarray, classes: int) -> np.ndarray:
    """(N, K) float32 log-probabilities; a class the head never saw gets -50."""
    scaler, regression = head
    logits = np.full((len(features), classes), -50.0, np.float32)
    scaled = scaler.transform(features.astype(np.float32))
    scores = regression.decision_function(scaled)
    if scores.ndim == 1:  # two classes have one score
        scores = np.stack([-scores / 2, scores / 2], axis=1)
    logits[:, regression.classes_] = log_softmax(scores, axis=1)
    return np.maximum(logits, -50.0)
