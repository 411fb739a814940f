"""Stratified folds that keep groups whole.

A group (copies of one drawing, pictures of one person) on both sides of a split
makes a validation score flatter itself. Folds are saved once and shared by every
run. Source: scikit-learn's StratifiedGroupKFold. Limits: stratification is as good
as the group sizes allow.
"""

from fractions import Fraction

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
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
    table, labels = _name_groups(manifest, groups)
    if folds < 2 or table["group"].nunique() < folds:
        raise ValueError(
            f"`folds` should be 2 to the number of groups, {table['group'].nunique()}, "
            f"but {folds} came; lower `folds`"
        )
    table["fold"] = _assign(labels, table["group"].to_numpy(), folds, seed)
    table.attrs["notices"] = _small_classes(manifest, table, folds)
    return table


def make_hold_out(
    manifest: pd.DataFrame, groups: pd.DataFrame | None, share: float, seed: int
) -> pd.DataFrame:
    """Hold out `share` of the training pictures once, as fold 0.

    All other rows get `HOLD_OUT`: they only ever train.

    Args:
        manifest: rows with `image_id, label, subset`.
        groups: `image_id, group`; kept whole.
        share: 0-0.5; met to a twentieth where groups allow.
        seed: shuffles groups.
    Returns:
        As `make_folds`.
    Raises:
        ValueError: a share out of range, or too few groups for it.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"`hold_out` should be above 0 and at most 0.5, not {share}")
    part = Fraction(share).limit_denominator(20) or Fraction(1, 20)
    table = make_folds(manifest, groups, part.denominator, seed)
    held = table["fold"] < part.numerator
    table["fold"] = np.where(held, 0, HOLD_OUT)
    rows = table[held].merge(manifest[["image_id", "class_name"]], on="image_id")
    train = manifest.loc[manifest["subset"] == "train", "class_name"]
    absent = sorted(set(train) - set(rows["class_name"]))
    some = ", ".join(map(str, absent[:5])) + (", …" if len(absent) > 5 else "")
    notice = [f"{len(absent)} classes are not held out: {some}"] if absent else []
    table.attrs["notices"] = notice
    return table


def count_held(folds: pd.DataFrame, wanted: int) -> int:
    """How many folds to hold out: those `wanted`, or all there are where it is 0."""
    return wanted or int(folds["fold"].max()) + 1


def join_groups(*tables: pd.DataFrame) -> pd.DataFrame:
    """Groups that keep every one of several groupings whole, e.g. copies and persons.

    Args:
        *tables: `image_id, group`; a name means the same within a table only.
    Returns:
        `image_id, group` of every picture named; a group is called by its first
        picture.
    """
    edges = [
        table[["image_id"]].assign(link=f"{number} " + table["group"].astype(str))
        for number, table in enumerate(tables)
    ]
    joined = pd.concat(edges, ignore_index=True)
    ids, rows = np.unique(joined["image_id"].to_numpy(str), return_inverse=True)
    names, links = np.unique(joined["link"].to_numpy(str), return_inverse=True)
    size = len(ids) + len(names)
    ends = (rows, links + len(ids))
    graph = coo_array((np.ones(len(rows)), ends), shape=(size, size))
    part = connected_components(graph, directed=False)[1][: len(ids)]
    first = pd.Series(ids).groupby(part).transform("min")
    return pd.DataFrame({"image_id": ids, "group": first.to_numpy()})


def _name_groups(
    manifest: pd.DataFrame, groups: pd.DataFrame | None
) -> tuple[pd.DataFrame, np.ndarray]:
    """(`image_id, group` of the training rows, their labels)."""
    train = manifest[manifest["subset"] == "train"]
    table = pd.DataFrame({"image_id": train["image_id"], "group": train["image_id"]})
    if groups is not None:
        named = groups.drop_duplicates("image_id").set_index("image_id")["group"]
        table["group"] = train["image_id"].map(named).fillna(train["image_id"])
    return table.reset_index(drop=True), train["label"].to_numpy()


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
