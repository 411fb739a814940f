"""Stratified folds that keep groups whole.

A group (copies of one drawing, pictures of one person) on both sides of a split
makes a validation score flatter itself. Folds are saved once and shared by every
run. Source: scikit-learn's StratifiedGroupKFold. Limits: stratification is as good
as the group sizes allow.
"""

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

HOLD_OUT = -1  # fold number of rows that only ever train


def make_folds(
    manifest: pd.DataFrame, groups: pd.DataFrame | None, folds: int, seed: int
) -> pd.DataFrame:
    """Assign each training picture to one of `folds` folds.

    Args:
        manifest: rows with `image_id, label, subset`.
        groups: `image_id, group`; pictures without an entry are their own group.
        folds: number of folds F, at least 2.
        seed: shuffles groups; the same seed gives the same folds.
    Returns:
        `image_id, group, fold` (0..F-1), in manifest order. `attrs["notices"]` says
        which classes are too small to be in every fold.
    Raises:
        ValueError: fewer groups than folds.
    """
    train = manifest[manifest["subset"] == "train"]
    table = pd.DataFrame({"image_id": train["image_id"], "group": train["image_id"]})
    if groups is not None:
        named = groups.drop_duplicates("image_id").set_index("image_id")["group"]
        table["group"] = train["image_id"].map(named).fillna(train["image_id"])
    table = table.reset_index(drop=True)
    labels = train["label"].to_numpy()
    if folds < 2 or table["group"].nunique() < folds:
        raise ValueError(
            f"`folds` should be 2 to the number of groups, {table['group'].nunique()}, "
            f"but {folds} came; lower `folds`"
        )
    table["fold"] = _assign(labels, table["group"].to_numpy(), folds, seed)
    table.attrs["notices"] = _small_classes(manifest, table, folds)
    return table


def _assign(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """(N,) fold numbers; classes smaller than `folds` are pooled for the splitter."""
    counts = np.bincount(labels)
    pooled = np.where(counts[labels] < folds, len(counts), labels)
    if (np.bincount(pooled)[np.unique(pooled)] < folds).any():
        pooled = np.zeros_like(labels)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold = np.empty(len(labels), np.int64)
    for number, (_, held_out) in enumerate(splitter.split(labels, pooled, groups)):
        fold[held_out] = number
    return fold


def _small_classes(
    manifest: pd.DataFrame, table: pd.DataFrame, folds: int
) -> list[str]:
    """One notice for the classes that some fold cannot hold out."""
    merged = table.merge(manifest[["image_id", "class_name"]], on="image_id")
    present = merged.groupby("class_name")["fold"].nunique()
    small = list(present[present < folds].index)
    if not small:
        return []
    shown = ", ".join(map(str, small[:5])) + (", …" if len(small) > 5 else "")
    return [f"{len(small)} classes are missing from some fold: {shown}"]


def take_fraction(
    labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Mask of about `fraction` of the rows: as much of every class, groups whole.

    Of each class at least one group is taken; a smaller fraction under the same seed
    is part of a larger one.

    Args:
        labels: (n,) class numbers.
        groups: (n,) group of each row.
        fraction: over 0, up to 1.
        seed: shuffles the groups.
    """
    table = pd.DataFrame({"label": labels, "group": groups})
    first = table.drop_duplicates("group")
    order = np.random.default_rng(seed).permutation(len(first))
    sizes = table["group"].value_counts()
    wanted = table["label"].value_counts() * fraction
    taken: set[object] = set()
    filled = dict.fromkeys(wanted.index, 0)
    for label, group in first.iloc[order].itertuples(index=False):
        if filled[label] == 0 or filled[label] + sizes[group] / 2 <= wanted[label]:
            taken.add(group)
            filled[label] += sizes[group]
    return table["group"].isin(taken).to_numpy()


def check_folds(folds: pd.DataFrame, manifest: pd.DataFrame) -> None:
    """Raise ValueError unless every training picture has one fold and groups hold."""
    train = manifest.loc[manifest["subset"] == "train", "image_id"]
    missing = set(train) - set(folds["image_id"])
    if missing:
        raise ValueError(
            f"every training picture should have a fold, but {len(missing)} have none "
            f"(first {min(missing)!r}); run 01_eda again for this data"
        )
    if folds["image_id"].duplicated().any():
        twice = folds.loc[folds["image_id"].duplicated(), "image_id"].iloc[0]
        raise ValueError(f"a picture should have one fold, but {twice!r} has two")
    spread = folds.groupby("group")["fold"].nunique()
    if (spread > 1).any():
        raise ValueError(
            f"a group should stay in one fold, but {spread.idxmax()!r} is in "
            f"{spread.max()}; run 01_eda again"
        )
