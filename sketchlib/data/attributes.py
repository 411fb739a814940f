"""What a class is made of: the values of several attributes, or a coarser class.

A label such as mask × gender × age is a row of values; a dog is a poodle and an
animal. Both are columns of the user's table, or a mapping in a file, and both are
facts of a class, never of a picture: each class has one value of each attribute.
Limits: a row of values without a training picture is no class; it is named.
"""

import difflib
import itertools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from sketchlib.data import manifest

_MOST_ROWS = 100_000  # of values: beyond, nobody reads which ones are unseen
_MAPPINGS = (".csv", ".yaml", ".yml")


@dataclass(frozen=True)
class Parts:
    """What K classes are made of.

    Attributes:
        names: A attributes.
        values: their values, sorted.
        codes: (A, K), the value of each class by its place in `values`.
    """

    names: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]
    codes: tuple[tuple[int, ...], ...]

    def of(self, attribute: int) -> list[str]:
        """The value of each class, K entries."""
        return [self.values[attribute][code] for code in self.codes[attribute]]


def make_parts(names: Sequence[str], values: Sequence[Sequence[str]]) -> Parts:
    """Parts from the values of each attribute by class.

    Args:
        names: A attributes.
        values: A lists of K values.
    """
    found = [np.unique(np.asarray(one, str), return_inverse=True) for one in values]
    return Parts(
        tuple(names),
        tuple(tuple(map(str, kinds)) for kinds, _ in found),
        tuple(tuple(map(int, codes)) for _, codes in found),
    )


def read_parts(
    data_dir: Path, columns: manifest.Columns, names: Sequence[str]
) -> Parts | None:
    """What the classes are made of; None where nothing says so.

    Args:
        data_dir: with `train.csv`.
        columns: names of its columns; a label made of columns is made of those.
        names: the attributes' columns; empty for those of the label.
    Raises:
        ValueError: a column is missing, or a class has two values of an attribute.
    """
    names = list(names) or list(columns.made_of)
    if not names:
        return None
    if len(set(names)) != len(names):
        raise ValueError(f"`attributes` should be different columns, not {names}")
    found = read_class_values(data_dir, columns, names)
    return make_parts(names, [found[name].tolist() for name in names])


def read_class_values(
    data_dir: Path,
    columns: manifest.Columns,
    names: Sequence[str],
    parameter: str = "attributes",
) -> pd.DataFrame:
    """The value of each class in columns of `train.csv`, indexed by class name.

    Args:
        data_dir: with `train.csv`.
        columns: names of its columns.
        names: columns.
        parameter: that named them, for the message.
    Raises:
        ValueError: a column is missing or empty, or a class has two values.
    """
    table = manifest.read_table(data_dir / "train.csv")
    _check_names(table, names, data_dir / "train.csv", parameter)
    values = manifest.read_values(data_dir, names, columns)
    rows = manifest.train_rows(manifest.read_manifest(data_dir, columns))
    rows = rows.merge(values.drop_duplicates("image_id"), on="image_id")
    for name in names:
        _check_one_value(rows, name, data_dir / "train.csv")
    first = rows.drop_duplicates("label").sort_values("label")
    index = pd.Index(manifest.class_names(rows), name="class_name")
    return first[list(names)].set_index(index)


def _check_names(
    table: pd.DataFrame, names: Sequence[str], path: Path, parameter: str
) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        near = difflib.get_close_matches(missing[0], list(table), 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"`{parameter}` should name columns of {path}, which has {list(table)}, "
            f"but {missing[0]!r} came{hint}"
        )


def _check_one_value(rows: pd.DataFrame, name: str, path: Path) -> None:
    empty = rows[name] == ""
    if empty.any():
        raise ValueError(
            f"`{name}` should have a value for every picture of {path}, but "
            f"{rows.loc[empty, 'image_id'].iloc[0]!r} has none"
        )
    kinds = rows.groupby("class_name")[name].nunique()
    if (kinds > 1).any():
        twice = kinds.idxmax()
        found = sorted(rows.loc[rows["class_name"] == twice, name].unique())[:3]
        raise ValueError(
            f"each class should have one `{name}`, but class {twice!r} has "
            f"{kinds.max()} in {path}: {', '.join(found)}; correct the rows, or make "
            f"the label of the attributes, as in `columns: [image_path, a+{name}]`"
        )


def check_distinct(parts: Parts, classes: Sequence[str]) -> None:
    """Raise ValueError where two classes have the same value of every attribute."""
    seen: dict[tuple[int, ...], str] = {}
    for name, row in zip(classes, zip(*parts.codes, strict=True), strict=True):
        if row in seen:
            raise ValueError(
                "classes should differ in an attribute to be put together from them, "
                f"but {seen[row]!r} and {name!r} have the same "
                f"{', '.join(parts.names)}; add the column that tells them apart to "
                "`attributes`"
            )
        seen[row] = name


def list_unseen(parts: Parts) -> list[str]:
    """Rows of values that are no class, since no training picture shows them."""
    if np.prod([float(len(kinds)) for kinds in parts.values]) > _MOST_ROWS:
        return []
    seen = set(zip(*(parts.of(a) for a in range(len(parts.names))), strict=True))
    rows = itertools.product(*parts.values)
    return [manifest.MADE_OF.join(row) for row in rows if row not in seen]


def describe(parts: Parts) -> list[str]:
    """Notices for the reader: what is crossed, and what of it nobody drew."""
    crossed = " × ".join(
        f"{name} ({len(kinds)})"
        for name, kinds in zip(parts.names, parts.values, strict=True)
    )
    notices = [f"{len(parts.codes[0])} classes of {crossed}"]
    unseen = list_unseen(parts)
    if unseen:
        shown = ", ".join(unseen[:5]) + (", …" if len(unseen) > 5 else "")
        notices.append(
            f"{len(unseen)} rows of values have no training picture and cannot be "
            f"predicted: {shown}"
        )
    return notices


# --- coarser classes ----------------------------------------------------------


def read_grouping(
    source: str, data_dir: Path, columns: manifest.Columns, path: Path | None
) -> pd.Series:
    """The superclass of each class, by class name in label order.

    Args:
        source: as the parameter says it: a file of a mapping, or a column.
        data_dir: with `train.csv`.
        columns: names of its columns.
        path: the file, where `source` is one.
    Raises:
        FileNotFoundError: the file is not there.
        ValueError: neither a mapping nor a column, or a class without a superclass.
    """
    if path is None or path.suffix.lower() not in _MAPPINGS:
        return read_class_values(data_dir, columns, [source], "superclasses")[source]
    classes = manifest.class_names(manifest.read_manifest(data_dir, columns))
    return read_mapping(path, classes)


def read_mapping(path: Path, classes: Sequence[str]) -> pd.Series:
    """The superclass of each class from a file.

    Args:
        path: a CSV `class_name, superclass`, or YAML `superclass: [class, …]`.
        classes: K names.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no mapping, or a class has no superclass or two.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        pairs = _read_yaml(path)
    else:
        pairs = _read_csv(path)
    found: dict[str, str] = {}
    for name, superclass in pairs:
        name = unicodedata.normalize("NFC", name)
        if found.setdefault(name, superclass) != superclass:
            raise ValueError(
                f"{path.name} should give every class one superclass, but {name!r} "
                f"has {found[name]!r} and {superclass!r}"
            )
    missing = [name for name in classes if name not in found]
    if missing:
        near = difflib.get_close_matches(missing[0], list(found), 1)
        hint = f" (is {near[0]!r} it?)" if near else ""
        raise ValueError(
            f"{path.name} should give every class a superclass, but {len(missing)} "
            f"have none, first {missing[0]!r}{hint}; add a row for each"
        )
    index = pd.Index(classes, name="class_name")
    return pd.Series([found[name] for name in classes], index, name="superclass")


def _read_csv(path: Path) -> list[tuple[str, str]]:
    table = manifest.read_table(path)
    if not {"class_name", "superclass"} <= set(table):
        raise ValueError(
            f"{path.name} should have the columns class_name and superclass, but has "
            f"{list(table.columns)}"
        )
    return list(zip(table["class_name"], table["superclass"], strict=True))


def _read_yaml(path: Path) -> list[tuple[str, str]]:
    if not path.exists():
        raise FileNotFoundError(f"`{path.name}` was expected in {path.parent}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} should be YAML, but cannot be read: {reason}") from (
            error
        )
    whole = isinstance(content, Mapping) and all(
        isinstance(names, list) for names in content.values()
    )
    if not whole:
        raise ValueError(
            f"{path.name} should be lines `superclass: [class, class]`, but is not"
        )
    return [(str(name), str(one)) for one, names in content.items() for name in names]
