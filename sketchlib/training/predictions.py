"""Probabilities as files: `Predictions`, the noun that travels between runs.

Rows are joined by `image_id`, columns by class name, never by position, so that
folders copied from other machines blend safely. Limits: logits are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sketchlib import workspace
from sketchlib.training import viewing

if TYPE_CHECKING:  # torch takes seconds to import; reading a file needs none of it
    from torch import nn

    from sketchlib.training import compute, datasets


@dataclass(frozen=True)
class Predictions:
    """Logits of N images over K classes.

    Attributes:
        image_ids: (N,) unique strings.
        classes: (K,) class names, the columns of `logits`.
        logits: (N, K) float32; softmax gives probabilities.
        fold: (N,) int, the fold each row was held out in; -1 where there is none.
    """

    image_ids: np.ndarray
    classes: np.ndarray
    logits: np.ndarray
    fold: np.ndarray

    def __post_init__(self) -> None:
        check_predictions(self)

    @property
    def probs(self) -> np.ndarray:
        """(N, K) float64 probabilities; rows sum to 1."""
        shifted = self.logits.astype(np.float64)
        shifted = shifted - shifted.max(axis=1, keepdims=True)
        powers = np.exp(shifted)
        return powers / powers.sum(axis=1, keepdims=True)

    @property
    def labels(self) -> np.ndarray:
        """(N,) index of the most probable class."""
        return self.logits.argmax(axis=1)


def check_predictions(predictions: Predictions) -> None:
    """Raise ValueError unless shapes agree, ids are unique and logits finite."""
    rows, columns = predictions.logits.shape
    if (len(predictions.image_ids), len(predictions.classes)) != (rows, columns):
        raise ValueError(
            f"logits should be {len(predictions.image_ids)} images × "
            f"{len(predictions.classes)} classes, but are {rows} × {columns}; "
            "write the predictions again"
        )
    if len(predictions.fold) != rows:
        raise ValueError(
            f"`fold` should have {rows} entries, but has {len(predictions.fold)}"
        )
    if len(np.unique(predictions.image_ids)) != rows:
        values, counts = np.unique(predictions.image_ids, return_counts=True)
        raise ValueError(
            f"each image should be predicted once, but {values[counts.argmax()]!r} "
            f"stands {counts.max()} times; predict each fold once"
        )
    finite = np.isfinite(predictions.logits).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"logits should be finite, but {int((~finite).sum())} rows are not, first "
            f"{predictions.image_ids[~finite][0]!r}; train with a smaller `lr`"
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write an `.npz` that `read_predictions` and plain numpy can read."""
    with workspace.atomic_path(path) as temporary, temporary.open("wb") as out:
        np.savez_compressed(
            out,
            image_ids=predictions.image_ids.astype(str),
            classes=predictions.classes.astype(str),
            logits=predictions.logits.astype(np.float32),
            fold=predictions.fold.astype(np.int64),
        )


def read_predictions(path: Path) -> Predictions:
    """The predictions in `path`.

    Raises:
        FileNotFoundError: there is no such file, with the notebook that writes it.
        ValueError: the file lacks an array or fails the checks.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"`{path.name}` was expected in {path.parent}; run 03_train with "
            f"run_name {path.parent.name!r} first"
        )
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"image_ids", "classes", "logits"} - set(arrays.files)
        if missing:
            raise ValueError(
                f"{path} should hold image_ids, classes and logits, but lacks "
                f"{sorted(missing)}; write it with 03_train"
            )
        ids = arrays["image_ids"]
        fold = arrays["fold"] if "fold" in arrays.files else np.full(len(ids), -1)
        return Predictions(ids, arrays["classes"], arrays["logits"], fold)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Rows of several predictions over the same classes, one below the other."""
    if any(list(part.classes) != list(parts[0].classes) for part in parts):
        raise ValueError(
            "predictions to join should have the same classes in the same order"
        )
    return Predictions(
        np.concatenate([part.image_ids for part in parts]),
        parts[0].classes,
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.fold for part in parts]),
    )


def average(parts: Sequence[Predictions]) -> Predictions:
    """Soft vote: mean probability of predictions of the same images, as log-probs.

    Raises:
        ValueError: the parts differ in images, their order, or classes.
    """
    first = parts[0]
    for part in parts[1:]:
        if list(part.image_ids) != list(first.image_ids):
            raise ValueError("predictions to average should be of the same images")
        if list(part.classes) != list(first.classes):
            raise ValueError("predictions to average should have the same classes")
    mean = np.mean([part.probs for part in parts], axis=0)
    logits = np.log(np.maximum(mean, 1e-12)).astype(np.float32)
    return Predictions(first.image_ids, first.classes, logits, first.fold)


def predict(
    model: nn.Module,
    examples: datasets.Examples,
    classes: Sequence[str],
    *,
    way: compute.Compute,
    tta: Sequence[str] = (),
    fold: int = -1,
    batch_size: int = 128,
) -> Predictions:
    """Logits of `examples`, as the mean probability over the views asked for.

    Args:
        model: with K outputs; left in eval mode.
        examples: N rows of a cache; no augmentation is applied.
        classes: K class names in the model's order.
        way: precision, layout and device.
        tta: views beside the upright one, see `viewing.KINDS`.
        fold: written beside every row.
        batch_size: pictures at once.
    Raises:
        ValueError: an unknown view.
    """
    import torch

    from sketchlib.training import datasets, kernels, models, processes

    names = viewing.spell(tta)
    side_px = examples.pixels.geometry.side_px
    mean, std = (value.to(way.device) for value in models.input_stats(model))
    quick = way.place(kernels.fold_for_inference(model, side_px))
    loader = datasets.make_loader(
        datasets.SketchDataset(examples, "none", 0),
        batch_size,
        workers=0,
        training=False,
    )
    parts, places = [], []
    with torch.inference_mode(), way.autocast():
        for images, _, positions in loader:
            images = images.to(way.device)
            logits = torch.stack(
                [
                    quick(
                        datasets.to_input(seen, mean, std).contiguous(
                            memory_format=way.memory_format
                        )
                    ).float()
                    for seen in (
                        images,
                        *(viewing.look(images, name) for name in names),
                    )
                ]
            )  # (V, B, K)
            parts.append(logits.log_softmax(-1).exp().mean(0).log().cpu().numpy())
            places.append(positions.numpy())
    nothing = np.zeros((0, len(classes)), np.float32)
    joined = processes.join_rows(
        np.concatenate([*places, np.zeros(0, np.int64)]),
        np.concatenate([*parts, nothing]),
    )
    floor = np.maximum(joined, -50.0).astype(np.float32)  # log 0 is -inf
    folds = np.full(len(floor), fold)
    return Predictions(examples.image_ids, np.asarray(classes), floor, folds)
