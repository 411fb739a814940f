"""Labels to doubt: by the models, by their folder, and what lies nearest to them.

The ranking is cleanlab's self-confidence of out-of-fold probabilities (Northcutt et
al. 2021, "Confident learning"), after each fold's logits were given the temperature
of the others. Nothing is changed here: suspects are a list for the review. Limits: a
model's blind spot looks like a wrong label; neighbours are near in what the models
say, not in what the pictures show.
"""

import importlib.util

import numpy as np
import pandas as pd

from sketchlib.analysis import calibration, joining
from sketchlib.training.predictions import Predictions

_FOLDERS_AGREE = 0.8  # share of pictures from which folders name classes
COLUMNS = ["image_id", "given", "suggested", "score"]


def can_rank() -> bool:
    """Whether cleanlab is installed: the extra `labels`."""
    return importlib.util.find_spec("cleanlab") is not None


def find_suspects(
    predictions: Predictions, manifest: pd.DataFrame, top: int
) -> pd.DataFrame:
    """The training pictures whose label is least believed, the worst first.

    Args:
        predictions: out-of-fold, from folds that keep copies together.
        manifest: every predicted image must have a label in it.
        top: rows kept at most; pictures whose own label is the likeliest never count.
    Returns:
        image_id, given, suggested (class names), score (0-1, cleanlab's
        self-confidence: low means doubtful).
    """
    from cleanlab.rank import get_label_quality_scores

    joined = joining.join_labels(calibration.calibrate(predictions, manifest), manifest)
    quality = get_label_quality_scores(
        joined.truth, joined.probs, method="self_confidence"
    )
    names = np.array(joined.classes, object)
    table = pd.DataFrame(
        {
            "image_id": joined.image_ids.astype(str),
            "given": names[joined.truth],
            "suggested": names[joined.labels],
            "score": quality,
        }
    )
    doubted = table[~joined.correct].sort_values(["score", "image_id"])
    return doubted.head(top).reset_index(drop=True)


def find_misfiled(table: pd.DataFrame) -> pd.DataFrame:
    """Training pictures in a folder whose others carry another label.

    Where folders hold classes, they are a second opinion on every label. Where they
    mean something else, nothing is said: fewer than four fifths of the pictures then
    are of their folder's most frequent class.

    Args:
        table: training rows, `image_id, path, class_name`.
    Returns:
        The columns of `likeness.suspect_labels`, with the other pictures of the folder
        for neighbours, and `source`, the surest first.
    """
    folder = table["path"].str.rpartition("/")[0]
    counts = pd.crosstab(folder, table["class_name"])
    most, size = counts.max(axis=1), counts.sum(axis=1)
    told = len(counts) > 1 and most.sum() >= _FOLDERS_AGREE * len(table)
    usual = folder.map(counts.idxmax(axis=1)[(most > size / 2) & (size > 2) & told])
    alike = table.groupby([folder, "class_name"])["path"].transform("size")
    others = folder.map(size) - 1
    found = table[["image_id", "class_name"]].assign(
        suggestion=usual,
        own=(alike - 1) / others,
        other=folder.map(most) / others,
        source="folder",
    )
    found = found[usual.notna() & (usual != table["class_name"])]
    found.insert(5, "suspicion", found["other"] - found["own"])
    return found.sort_values(["suspicion", "image_id"], ascending=[False, True])


def find_overlaps(
    predictions: Predictions, manifest: pd.DataFrame, top: int
) -> pd.DataFrame:
    """Pairs of classes whose labels are mixed up most, by cleanlab's estimate.

    Returns:
        class_a, class_b, images (estimated to be of one and labelled the other),
        share (0-1 of all pictures).
    """
    from cleanlab.dataset import find_overlapping_classes

    joined = joining.join_labels(calibration.calibrate(predictions, manifest), manifest)
    found = find_overlapping_classes(
        labels=joined.truth,
        pred_probs=joined.probs,
        class_names=joined.classes,
    )
    found = found[found["Num Overlapping Examples"] > 0].head(top)
    columns = {
        "Class Name A": "class_a",
        "Class Name B": "class_b",
        "Num Overlapping Examples": "images",
        "Joint Probability": "share",
    }
    return found[list(columns)].rename(columns=columns).reset_index(drop=True)


def find_neighbours(
    suspects: pd.DataFrame,
    predictions: Predictions,
    manifest: pd.DataFrame,
    each: int = 2,
) -> pd.DataFrame:
    """Pictures that the models see as most like each suspect, of both its classes.

    Likeness is the overlap of two pictures' probabilities (Bhattacharyya), from which
    the two classes themselves are left out: they are the question.

    Args:
        suspects: `find_suspects`.
        predictions: the same out-of-fold predictions.
        manifest: every predicted image must have a label in it.
        each: neighbours of the given and of the suggested class.
    Returns:
        image_id (the suspect), neighbour, class_name, side (`given` or `suggested`),
        likeness (0-1).
    """
    joined = joining.join_labels(predictions, manifest)
    row_of = pd.Series(np.arange(len(joined.truth)), joined.image_ids.astype(str))
    place = {name: number for number, name in enumerate(joined.classes)}
    doubted = set(suspects["image_id"])
    trusted = np.array([name not in doubted for name in row_of.index])
    roots = np.sqrt(joined.probs)
    rows = []
    for suspect in suspects.itertuples(index=False):
        own = roots[row_of[suspect.image_id]].copy()
        own[[place[suspect.given], place[suspect.suggested]]] = 0
        own /= max(float(np.linalg.norm(own)), 1e-9)
        for side in ("given", "suggested"):
            name = getattr(suspect, side)
            inside = np.flatnonzero((joined.truth == place[name]) & trusted)
            likeness = roots[inside] @ own
            for best in np.argsort(-likeness, kind="stable")[:each]:
                other = str(joined.image_ids[inside[best]])
                rows.append((suspect.image_id, other, name, side, likeness[best]))
    columns = ["image_id", "neighbour", "class_name", "side", "likeness"]
    return pd.DataFrame(rows, columns=columns)
