"""Runs, pictures and labels brought together: by `image_id` and class name.

Nothing here goes by position, so folders from other machines can be read safely; what
does not fit is refused with the difference named. Limits: classes must be the same
set, folds the same parts.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sketchlib.data import decisions
from sketchlib.data import manifest as manifests
from sketchlib.training.predictions import Predictions


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
    truth = find_truth(aligned, manifest)
    return Labelled(aligned.image_ids, classes, aligned.probs, truth, aligned.fold)


def find_truth(predictions: Predictions, manifest: pd.DataFrame) -> np.ndarray:
    """(N,) index of the true class of each predicted image, in the manifest's order.

    Raises:
        ValueError: a predicted image has no label in `manifest`.
    """
    classes = manifests.class_names(manifest)
    names = manifests.train_rows(manifest).set_index("image_id")["class_name"]
    rows = names.index.get_indexer(pd.Index(predictions.image_ids.astype(str)))
    if (rows < 0).any():
        raise ValueError(
            "every predicted image should have a label in the manifest, but "
            f"{name_some(predictions.image_ids[rows < 0])} have none; score `oof.npz` "
            "of the same data, not `test.npz`"
        )
    position = {name: index for index, name in enumerate(classes)}
    composed = [unicodedata.normalize("NFC", name) for name in names.iloc[rows]]
    return np.array([position[name] for name in composed], np.int64)


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
