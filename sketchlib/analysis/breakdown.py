"""Where one run is right and where it fails: by picture, class, pair, group and flag.

Tables for reading, the worst always first. Limits: with thirty pictures a class, a
recall moves by three points a picture; read it beside the number of pictures.
"""

import numpy as np
import pandas as pd
from sklearn import cluster, metrics

from sketchlib.analysis import calibration, joining, scores
from sketchlib.training.predictions import Predictions


def per_picture(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """One row per picture, most confident mistakes first, least sure hits last.

    Returns:
        image_id, class_name, predicted, correct, probability (of the predicted
        class), true_probability, fold.
    """
    joined = joining.join_labels(predictions, manifest)
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
    joined = joining.join_labels(predictions, manifest)
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


def count_confusions(joined: joining.Labelled) -> np.ndarray:
    """(K, K) pictures by true (row) and predicted (column) class."""
    numbers = list(range(len(joined.classes)))
    return metrics.confusion_matrix(joined.truth, joined.labels, labels=numbers)


def confusion(predictions: Predictions, manifest: pd.DataFrame) -> pd.DataFrame:
    """Pictures by true class (rows) and predicted class (columns), as counts."""
    joined = joining.join_labels(predictions, manifest)
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
    joined = joining.join_labels(predictions, manifest)
    known = findings.drop_duplicates("image_id").set_index("image_id")["flags"]
    absent = ~np.isin(joined.image_ids.astype(str), known.index.to_numpy(str))
    if absent.any():
        raise ValueError(
            "every predicted image should be in the findings, but "
            f"{joining.name_some(joined.image_ids[absent])} are not; run 01_eda on "
            "this data"
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
        low, high = calibration.wilson(np.array([hits]), np.array([images]))
        others = float(correct[~inside].mean()) if (~inside).any() else float("nan")
        share = hits / images
        rows.append((name, images, share, low[0], high[0], others, share - others))
    return pd.DataFrame(rows, columns=names)


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
    left, right = scores.pair(a, b, manifest, shared_only)
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


# --- superclasses -----------------------------------------------------------


def learn_superclasses(
    predictions: Predictions, manifest: pd.DataFrame, count: int
) -> pd.Series:
    """Classes that the run takes for each other, grouped; named by their largest.

    Average-linkage clustering of the mean probability two classes give each other.

    Returns:
        superclass by class name, in the manifest's class order.
    """
    joined = joining.join_labels(predictions, manifest)
    total = len(joined.classes)
    sums = np.zeros((total, total))
    np.add.at(sums, joined.truth, joined.probs)
    images = np.bincount(joined.truth, minlength=total)
    mean = sums / np.maximum(images, 1)[:, None]
    alike = (mean + mean.T) / 2
    distance = 1 - alike / max(float(alike.max()), 1e-9)
    np.fill_diagonal(distance, 0)
    groups = cluster.AgglomerativeClustering(
        min(count, total), metric="precomputed", linkage="average"
    ).fit_predict(distance)
    drawn_in = alike.sum(axis=1) - np.diag(alike)  # the member others are taken for
    names = np.array(joined.classes, object)
    found = pd.Series("", index=names)
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        head = names[inside[drawn_in[inside].argmax()]]
        rest = len(inside) - 1
        found.iloc[inside] = f"{head} + {rest}" if rest else head
    return found


def by_superclass(
    predictions: Predictions, manifest: pd.DataFrame, superclass: pd.Series
) -> pd.DataFrame:
    """How many mistakes stay within a superclass, the worst superclass first.

    Args:
        predictions: out-of-fold.
        manifest: every predicted image must have a label in it.
        superclass: by class name.
    Returns:
        superclass, classes, images, accuracy (0-1, of the class), superclass_accuracy
        (0-1), inside (share of its mistakes that stay inside), goes_to (where most
        of the others go).
    """
    joined = joining.join_labels(predictions, manifest)
    coarse = superclass.loc[joined.classes].to_numpy(object)
    true, named = coarse[joined.truth], coarse[joined.labels]
    rows = []
    for name in pd.unique(coarse):
        here = true == name
        away = named[here & (named != name)]
        wrong = here & ~joined.correct
        rows.append(
            {
                "superclass": name,
                "classes": int((coarse == name).sum()),
                "images": int(here.sum()),
                "accuracy": float(joined.correct[here].mean()),
                "superclass_accuracy": float((named[here] == name).mean()),
                "inside": float((named[wrong] == name).mean()) if wrong.any() else 1.0,
                "goes_to": str(pd.Series(away).mode().iloc[0]) if len(away) else "",
            }
        )
    order = ["superclass_accuracy", "accuracy", "superclass"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)
