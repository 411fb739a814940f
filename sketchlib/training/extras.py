"""Pictures that only ever train: generated, from elsewhere, or pseudo-labelled.

They never become rows of the manifest, so that no fold can hold them out: a table of
their own (`COLUMNS`) lists them, where `serves` says which fold's model may learn from
them. Limits: copies are found by equal cached pixels; a
flipped copy of a held-out drawing is the user's to keep out.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from sketchlib.data import cache, manifest

EVERY = -1  # serves every fold, and the model of all rows
ALL_ROWS = -2  # serves the model of all rows alone
# `root` is the folder that `path` lies in, empty for the data's own
COLUMNS = ["image_id", "path", "root", "label", "weight", "source", "serves"]


def read_extra(data_dir: Path, file: str, table: pd.DataFrame) -> pd.DataFrame:
    """The train-only pictures that `file` in `data_dir` lists; none when it is empty.

    The file has `image_path` (below `extra/`), `class_name` or `target`, `weight` (in
    the loss, 0-1) and `source` (where the picture comes from).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column, weight, source or class is missing or unknown.
    """
    if not file:
        return pd.DataFrame(columns=COLUMNS)
    path = data_dir / file
    if not path.is_file():
        raise FileNotFoundError(
            f"`extra_csv` should be a file in {data_dir}, but {path} does not exist"
        )
    found = manifest.read_table(path)
    manifest.check_columns(found, ["image_path", "weight", "source"], path)
    weights = pd.to_numeric(found["weight"], errors="coerce")
    _check_rows(weights.between(0, 1), found["weight"], "weight", "0-1", path)
    sources = found["source"].fillna("").str.strip()
    _check_rows(sources != "", sources, "source", "where the picture comes from", path)
    made = pd.DataFrame(
        {"path": "extra/" + manifest.clean_paths(found["image_path"], path)}
    )
    made["image_id"] = made["path"]
    made["label"] = _read_labels(found, table, path)
    made = made.assign(weight=weights, source=sources, serves=EVERY, root="")
    return made[COLUMNS]


def _check_rows(
    well: pd.Series, values: pd.Series, column: str, wanted: str, path: Path
) -> None:
    if not well.all():
        row = int((~well).to_numpy().argmax())
        raise ValueError(
            f"`{column}` should be {wanted}, but {values.iloc[row]!r} stands in row "
            f"{row + 2} of {path}"
        )


def _read_labels(found: pd.DataFrame, table: pd.DataFrame, path: Path) -> pd.Series:
    names = manifest.class_names(table)
    if "class_name" in found:
        numbers = found["class_name"].map({name: n for n, name in enumerate(names)})
        known = ", ".join(map(str, names[:5]))
        wanted = f"one of the {len(names)} classes of train.csv ({known}, …)"
        _check_rows(numbers.notna(), found["class_name"], "class_name", wanted, path)
        return numbers.astype("int64")
    manifest.check_columns(found, ["target"], path)
    numbers = pd.to_numeric(found["target"], errors="coerce")
    wanted = f"a label from 0 to {len(names) - 1}"
    well = numbers.isin(range(len(names)))
    _check_rows(well, found["target"], "target", wanted, path)
    return numbers.astype("int64")


def with_extra(table: pd.DataFrame, extra: pd.DataFrame) -> pd.DataFrame:
    """The rows whose pixels are needed: the manifest's, then extra pictures."""
    new = extra[~extra["image_id"].isin(table["image_id"])]
    if new.empty:
        return table
    needed = ["image_id", "path", "root"]
    return pd.concat(
        [table[["image_id", "path"]].assign(root=""), new[needed].drop_duplicates()],
        ignore_index=True,
    )


def check_no_copies(pixels: cache.PixelCache, extra: pd.DataFrame) -> None:
    """Raise ValueError where an extra picture is a picture of the data set.

    Such a copy would bring the answer of a held-out row into training.
    """
    foreign = set(extra.loc[extra["path"].str.startswith("extra/"), "image_id"])
    if not foreign:
        return
    own: dict[bytes, str] = {}
    later: list[tuple[str, bytes]] = []
    for row, name in enumerate(pixels.image_ids):
        if pixels.readable[row]:
            content = np.asarray(pixels.pixels[row]).tobytes()
            if name in foreign:
                later.append((name, content))
            else:
                own[content] = name
    for name, content in later:
        if content in own:
            raise ValueError(
                f"an extra picture should not be one of the data set, but {name!r} is "
                f"{own[content]!r}; remove its row from `extra_csv`"
            )


def for_fold(extra: pd.DataFrame, fold: int) -> pd.DataFrame:
    """The rows that may train the model of `fold` (-1: the one of all rows)."""
    if extra.empty:
        return pd.DataFrame(columns=COLUMNS)
    own = ALL_ROWS if fold < 0 else fold
    return extra[extra["serves"].isin([EVERY, own])]


def count_sources(extra: pd.DataFrame) -> pd.DataFrame:
    """Pictures, classes and mean weight by source and the fold they serve."""
    grouped = extra.groupby(["source", "serves"])
    return grouped.agg(
        pictures=("image_id", "size"),
        classes=("label", "nunique"),
        weight=("weight", "mean"),
    ).reset_index()
