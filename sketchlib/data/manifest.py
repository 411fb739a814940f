"""The CSV contract: one row per picture, from the competition's files.

Layout (the competition's): `train.csv` with `class_name, image_path, target`,
pictures below `train/`; `test.csv` with `image_path`, pictures below `test/`;
`sample_submission.csv`. A folder of class folders without any CSV is read too. A label
may be made of several columns, `mask+gender+age`: each row of values is a class.
The user's files are only ever read. Limits: everything is held in memory, which
is a few hundred bytes a picture.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

SUBSETS = ("train", "test")
MADE_OF = "+"  # joins the columns, and the values, that a class is made of
PICTURE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Columns:
    """Names of the columns in the user's files.

    Attributes:
        path: picture path, relative to `train/` or `test/`.
        label: integer label; or columns whose values make one, `mask+gender+age`
            (`+mask` for a single one).
        class_name: human name of the class; not read where the label is made.
    """

    path: str = "image_path"
    label: str = "target"
    class_name: str = "class_name"

    @property
    def made_of(self) -> tuple[str, ...]:
        """The columns that the label is made of; none where it is a column itself."""
        parts = tuple(part.strip() for part in self.label.split(MADE_OF))
        return tuple(part for part in parts if part) if MADE_OF in self.label else ()

    @property
    def answer(self) -> str:
        """The label's column in a submission, which holds class numbers."""
        return "target" if self.made_of else self.label


COMPETITION = Columns()


_ABROAD = re.compile(r"^[/~]|^[A-Za-z]:|://|\x00|(?:^|/)\.\.(?:/|$)")


def make_columns(names: Sequence[str]) -> Columns:
    """Columns from up to three names: picture path, label, class name."""
    if len(names) > 3:
        raise ValueError(
            f"`columns` should hold at most three names, but {list(names)} came"
        )
    columns = Columns(*names)
    if MADE_OF in columns.label and len(set(columns.made_of)) != len(
        columns.label.removeprefix(MADE_OF).split(MADE_OF)
    ):
        raise ValueError(
            "a label in `columns` should be made of different columns, as in "
            f"`mask+gender+age` or `+mask`, but {columns.label!r} came"
        )
    return columns


def read_manifest(data_dir: Path, columns: Columns = COMPETITION) -> pd.DataFrame:
    """One row per picture of `data_dir`, train rows first, in the files' order.

    Returns:
        Columns `image_id` (`train/<path>` or `test/<path>`), `path` (relative to
        `data_dir`), `label` (0..K-1, -1 in the test set), `class_name`, `subset`.
        `attrs["classes"]` lists the class names by label, `attrs["notices"]` says
        what was unusual but accepted.
    Raises:
        FileNotFoundError: no folder, or neither `train.csv` nor class folders.
        ValueError: a column is missing, a file is empty, a picture has two labels.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"`data_dir` should be a folder with train.csv and train/, but {data_dir} "
            "does not exist; run `sketch demo` for the demo drawings, or give "
            "`-p data_dir DIR`"
        )
    notices: list[str] = []
    if (data_dir / "train.csv").exists():
        train = _read_train(data_dir / "train.csv", columns, notices)
    else:
        train = _scan_class_folders(data_dir)
    parts = [train]
    if (data_dir / "test.csv").exists():
        parts.append(_read_test(data_dir / "test.csv", columns, notices))
    manifest = pd.concat(parts, ignore_index=True)
    manifest["image_id"] = manifest["subset"] + "/" + manifest["image_path"]
    manifest["path"] = manifest["image_id"]
    manifest = manifest[["image_id", "path", "label", "class_name", "subset"]]
    manifest.attrs["classes"] = _class_order(train)  # last: each step copies it
    manifest.attrs["notices"] = notices
    return manifest


def class_names(manifest: pd.DataFrame) -> list[str]:
    """Class names by label, K entries.

    Raises:
        ValueError: the manifest has no training rows.
    """
    train = train_rows(manifest)
    if train.empty:
        raise ValueError(
            "the manifest should have training rows, but it has none; check train.csv"
        )
    return _class_order(train)


def train_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows with a label, index reset."""
    return manifest[manifest["subset"] == "train"].reset_index(drop=True)


def test_rows(manifest: pd.DataFrame) -> pd.DataFrame:
    """The rows to predict, in the order of test.csv, index reset."""
    return manifest[manifest["subset"] == "test"].reset_index(drop=True)


def read_groups(
    data_dir: Path, name: str, columns: Columns = COMPETITION
) -> pd.DataFrame:
    """`image_id, group` from a column of the user's, such as who drew it.

    Pictures with an empty cell are in no group; `test.csv` counts where it has the
    column too.

    Raises:
        FileNotFoundError: there is no `train.csv`.
        ValueError: it has no such column.
    """
    parts = [read_values(data_dir, [name], columns)]
    path = data_dir / "test.csv"
    if path.exists() and name in read_table(path):
        parts.append(read_values(data_dir, [name], columns, subset="test"))
    found = pd.concat(parts, ignore_index=True).rename(columns={name: "group"})
    return found[found["group"] != ""].reset_index(drop=True)


def read_values(
    data_dir: Path,
    names: Sequence[str],
    columns: Columns = COMPETITION,
    subset: str = "train",
) -> pd.DataFrame:
    """`image_id` and further columns of the user's as text, row by row.

    Raises:
        FileNotFoundError: there is no CSV of the subset.
        ValueError: it lacks one of the columns.
    """
    path = data_dir / f"{subset}.csv"
    table = read_table(path)
    check_columns(table, [columns.path, *names], path)
    ids = f"{subset}/" + clean_paths(table[columns.path], path)
    values = {name: table[name].fillna("").str.strip() for name in names}
    return pd.DataFrame({"image_id": ids} | values)


def read_table(path: Path, notices: list[str] | None = None) -> pd.DataFrame:
    """A CSV as strings: UTF-8 with or without BOM, else CP949 with a notice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty or not a table.
    """
    if not path.exists():
        raise FileNotFoundError(f"`{path.name}` was expected in {path.parent}")
    for encoding in ("utf-8-sig", "cp949"):
        try:
            table = pd.read_csv(
                path, dtype=str, encoding=encoding, skip_blank_lines=True
            )
        except UnicodeDecodeError:
            continue
        except pd.errors.EmptyDataError as error:
            raise ValueError(
                f"`{path.name}` should start with a header line, but {path} is empty"
            ) from error
        except pd.errors.ParserError as error:
            raise ValueError(f"`{path}` is not a CSV table: {error}") from error
        if encoding != "utf-8-sig" and notices is not None:
            notices.append(f"{path.name} is not UTF-8; it was read as {encoding}")
        return table.dropna(how="all").reset_index(drop=True)
    raise ValueError(
        f"`{path}` should be UTF-8 or CP949 text, but is neither; save it as UTF-8"
    )


def _read_train(path: Path, columns: Columns, notices: list[str]) -> pd.DataFrame:
    table = read_table(path, notices)
    check_columns(table, [columns.path, *(columns.made_of or [columns.label])], path)
    if table.empty:
        raise ValueError(f"`{path}` should list pictures, but it has a header only")
    if columns.made_of:
        table = _make_labels(table, columns, path)
    named = columns.class_name in table
    rows = pd.DataFrame(
        {
            "image_path": clean_paths(table[columns.path], path),
            "label": _as_labels(table[columns.label], path),
            "class_name": table[columns.class_name if named else columns.label],
            "subset": "train",
        }
    )
    _check_classes(rows, path, notices)
    return _drop_repeats(_close_gaps(rows, notices), path, notices)


def _make_labels(table: pd.DataFrame, columns: Columns, path: Path) -> pd.DataFrame:
    """The table with label and class name from the values of several columns.

    Numbers follow the values in the order of the columns, numbers before texts.
    """
    names = list(columns.made_of)
    values = table[names].fillna("").apply(lambda column: column.str.strip())
    empty = (values == "").any(axis=1)
    if empty.any():
        row = int(empty.to_numpy().argmax())
        name = next(name for name in names if values.at[row, name] == "")
        raise ValueError(
            f"`{name}` should have a value in every row, since the label is made of "
            f"{MADE_OF.join(names)}, but is empty in row {row + 2} of {path}"
        )
    classes = values.drop_duplicates().sort_values(names, key=_sort_key)
    joined = classes.agg(MADE_OF.join, axis=1)
    if joined.duplicated().any():
        raise ValueError(
            f"values of {MADE_OF.join(names)} should make different class names, but "
            f"{joined[joined.duplicated()].iloc[0]!r} comes from two rows of values in "
            f"{path}; take `{MADE_OF}` out of the values"
        )
    numbers = pd.Series(range(len(joined)), index=joined.to_numpy())
    made = values.agg(MADE_OF.join, axis=1)
    given = {columns.label: made.map(numbers).astype(str), columns.class_name: made}
    return table.assign(**given)


def _sort_key(values: pd.Series) -> pd.Series:
    """A key that sorts 9 before 10, and numbers before texts."""
    numbers = pd.to_numeric(values, errors="coerce")
    padded = numbers.map("{:030.6f}".format)
    return padded.where(numbers.notna(), "~" + values.astype(str))


def _read_test(path: Path, columns: Columns, notices: list[str]) -> pd.DataFrame:
    table = read_table(path, notices)
    check_columns(table, [columns.path], path)
    rows = pd.DataFrame(
        {
            "image_path": clean_paths(table[columns.path], path),
            "label": -1,
            "class_name": "",
            "subset": "test",
        }
    )
    repeated = rows["image_path"][rows["image_path"].duplicated()]
    if len(repeated):
        raise ValueError(
            f"`{columns.path}` should be unique in {path}, but {repeated.iloc[0]!r} "
            f"stands there again in row {repeated.index[0] + 2}; remove the repeats"
        )
    return rows


def check_columns(table: pd.DataFrame, wanted: Sequence[str], path: Path) -> None:
    """Raise ValueError unless `table` has the `wanted` columns."""
    missing = [name for name in wanted if name not in table.columns]
    if not missing:
        return
    close = difflib.get_close_matches(missing[0], list(table.columns), 1, 0.5)
    hint = f" (is `{close[0]}` it?)" if close else ""
    raise ValueError(
        f"{path} should have the column `{missing[0]}`, but its columns are "
        f"{list(table.columns)}{hint}; give your names for image_path, target and "
        "class_name as the parameter `columns`"
    )


def check_sample(
    sample: pd.DataFrame,
    manifest: pd.DataFrame,
    path: Path,
    columns: Columns = COMPETITION,
) -> None:
    """Raise ValueError unless a submission in the sample's form can be written."""
    check_columns(sample, [columns.answer], path)
    wanted = manifest.loc[manifest["subset"] == "test", "path"].str[len("test/") :]
    if len(sample) != len(wanted):
        raise ValueError(
            f"{path} should have a row for each of {len(wanted)} test pictures, but "
            f"has {len(sample)}; take both files from the same download"
        )
    if columns.path not in sample:
        return
    unknown = set(clean_paths(sample[columns.path], path)) - set(wanted)
    if unknown:
        raise ValueError(
            f"{path} should name the pictures of test.csv, but {min(unknown)!r} and "
            f"{len(unknown) - 1} more are not there; take both from the same download"
        )


def clean_paths(paths: pd.Series, source: Path) -> pd.Series:
    """Relative POSIX paths; raises ValueError for one that leaves the folder."""
    cleaned = [one.replace("\\", "/").strip() for one in paths.fillna("").tolist()]
    bad = next((row for row, one in enumerate(cleaned) if _leaves_folder(one)), -1)
    if bad >= 0:
        raise ValueError(
            f"a picture path should be relative and stay in its folder, but "
            f"{paths.iloc[bad]!r} stands in row {bad + 2} of {source}"
        )
    return pd.Series(cleaned, paths.index)


def _leaves_folder(path: str) -> bool:
    return not path or _ABROAD.search(path) is not None


def _as_labels(column: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    bad = numbers.isna() | (numbers < 0) | (numbers % 1 != 0)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise ValueError(
            f"`{column.name}` should hold whole numbers from 0, but "
            f"{column.iloc[row]!r} stands in row {row + 2} of {path}; to take its "
            f"values as classes, write `{MADE_OF}{column.name}` in `columns`"
        )
    return numbers.astype("int64")


def _check_classes(rows: pd.DataFrame, path: Path, notices: list[str]) -> None:
    pairs = rows[["label", "class_name"]].drop_duplicates()
    for column, other in (("label", "class_name"), ("class_name", "label")):
        twice = pairs[pairs[column].duplicated(keep=False)]
        if len(twice):
            value = twice[column].iloc[0]
            others = sorted(map(str, twice.loc[twice[column] == value, other]))
            raise ValueError(
                f"each {column} should have one {other}, but {value!r} has {others} "
                f"in {path}; correct the rows of one of them"
            )
    few = rows["class_name"].value_counts()
    few = few[few < 2]
    if len(few):
        notices.append(f"{len(few)} classes have a single picture: {list(few.index)}")


def _close_gaps(rows: pd.DataFrame, notices: list[str]) -> pd.DataFrame:
    """Labels as 0..K-1; a gap in the user's numbering is a notice, not an error."""
    present = sorted(rows["label"].unique())
    if present == list(range(len(present))):
        return rows
    notices.append(
        f"labels run to {present[-1]} but only {len(present)} are used; "
        "they are renumbered inside and written back as given"
    )
    position = {label: index for index, label in enumerate(present)}
    return rows.assign(label=rows["label"].map(position))


def _drop_repeats(rows: pd.DataFrame, path: Path, notices: list[str]) -> pd.DataFrame:
    repeated = rows["image_path"].duplicated(keep=False)
    if not repeated.any():
        return rows
    labels = rows[repeated].groupby("image_path")["label"].nunique()
    conflict = labels[labels > 1]
    if len(conflict):
        given = rows[rows["image_path"].isin(conflict.index[:5])]
        found = given.groupby("image_path")["class_name"].unique()
        listed = "; ".join(f"{name!r}: {', '.join(of)}" for name, of in found.items())
        more = "; …" if len(conflict) > 5 else ""
        raise ValueError(
            f"a picture should have one label, but {len(conflict)} have two or more in "
            f"{path} ({listed}{more}); keep the right row of each"
        )
    notices.append(f"{int(rows['image_path'].duplicated().sum())} rows stand twice")
    return rows.drop_duplicates("image_path").reset_index(drop=True)


def _scan_class_folders(data_dir: Path) -> pd.DataFrame:
    root = data_dir / "train" if (data_dir / "train").is_dir() else data_dir
    names = sorted(
        folder.name
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
    )
    found = [
        (f"{name}/{file.name}", label, name)
        for label, name in enumerate(names)
        for file in sorted((root / name).iterdir())
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.name.startswith("._")
    ]
    if not found or root == data_dir:
        raise FileNotFoundError(
            f"train.csv, or class folders below train/, were expected in {data_dir}, "
            "but there are none; check `data_dir`"
        )
    rows = pd.DataFrame(found, columns=["image_path", "label", "class_name"])
    used = {name: i for i, name in enumerate(rows["class_name"].unique())}
    return rows.assign(subset="train", label=rows["class_name"].map(used))


def _class_order(train: pd.DataFrame) -> list[str]:
    pairs = train[["label", "class_name"]].drop_duplicates().sort_values("label")
    return [unicodedata.normalize("NFC", name) for name in pairs["class_name"]]


def given_labels(data_dir: Path, columns: Columns = COMPETITION) -> list[int]:
    """The user's own label number of each class, by our label 0..K-1."""
    path = data_dir / "train.csv"
    if columns.made_of or not path.exists():
        return list(range(len(class_names(read_manifest(data_dir, columns)))))
    labels = _as_labels(read_table(path)[columns.label], path)
    return sorted(int(label) for label in labels.unique())
