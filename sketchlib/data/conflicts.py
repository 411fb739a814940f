"""Copies of one drawing with two labels: what training is taught about them.

At least one label of such a set is wrong, or the classes are twins; which of four
answers is best depends on the data, so 01_eda measures all of them on frozen features
and 03_train trains with any. Limits: a flip between two classes is a question for the
review (thumb up, thumb down), never a contradiction.
"""

import numpy as np
import pandas as pd

POLICIES = ("keep", "drop", "merge", "down_weight")


def number_sets(image_ids: pd.Series, conflicts: pd.DataFrame) -> np.ndarray:
    """(N,) number of the contradictory set of each picture, -1 for none.

    Args:
        image_ids: (N,) ids.
        conflicts: of `groups.label_conflicts`, or an empty table; rows that are a
            `question` do not count.
    """
    if conflicts.empty:
        return np.full(len(image_ids), -1)
    real = conflicts[conflicts["verdict"] == "conflict"]
    names = {name: number for number, name in enumerate(real["copies"].unique())}
    of = real.set_index("image_id")["copies"].map(names)
    return of.reindex(image_ids).fillna(-1).to_numpy(np.int64)


def teach(
    labels: np.ndarray, sets: np.ndarray, policy: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which rows are taught which label, and how much each counts.

    Args:
        labels: (N,) class numbers.
        sets: (N,) of `number_sets`.
        policy: `keep` teaches the labels as given; `drop` nothing of a set; `merge`
            every member each label of the set, by its share of the set, which is a
            soft target told label by label; `down_weight` each as given, the set
            together counting as one picture.
    Returns:
        (M,) row numbers in 0..N-1, (M,) labels, (M,) float64 weights in the loss.
    Raises:
        ValueError: an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"`conflicts` must be one of {POLICIES}, but {policy!r} came")
    rows, weights = np.arange(len(labels)), np.ones(len(labels))
    inside = sets >= 0
    if policy == "drop":
        return rows[~inside], labels[~inside], weights[~inside]
    if policy == "down_weight":
        weights[inside] = 1 / np.bincount(sets[inside])[sets[inside]]
    if policy != "merge" or not inside.any():
        return rows, labels, weights
    members = pd.DataFrame({"set": sets, "label": labels, "row": rows})[inside]
    shares = members.groupby("set")["label"].value_counts(normalize=True)
    told = members[["set", "row"]].merge(shares.rename("share").reset_index(), on="set")
    return (
        np.concatenate([rows[~inside], told["row"].to_numpy()]),
        np.concatenate([labels[~inside], told["label"].to_numpy()]),
        np.concatenate([weights[~inside], told["share"].to_numpy()]),
    )
