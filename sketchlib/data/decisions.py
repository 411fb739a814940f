"""The human's word: verdicts appended to a file, laid over the manifest when read.

`decisions.csv` is only ever appended to, one flushed line a verdict, so that a kill
at any moment loses at most the verdict being given; an undo is one more line. It
lies beside the data folder (`data/demo` → `data/demo-decisions`): not in the data,
which are the user's, and not below the runs, which may be deleted and made again.
The verdicts are an overlay: no picture and no row of the user's is ever removed.
Limits: two people appending to one file on a network disk without atomic appends
may tear a line; torn lines are reported, never guessed at.
"""

import csv
import datetime
import difflib
import getpass
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from sketchlib import workspace
from sketchlib.data import manifest as manifests

COLUMNS = ("id", "action", "old", "new", "by", "when")
ACTIONS = ("keep", "drop", "not_duplicate", "relabel", "undo")
DROPPED = "dropped"  # subset of a training row that a verdict took out
PLACE = "SKETCHBOOK_DECISIONS"  # environment variable: another file
Pair = frozenset[str]


@dataclass(frozen=True)
class Decision:
    """One line of the file.

    Attributes:
        id: the picture.
        action: one of `ACTIONS`.
        old: what was there before: a class; for an undo, the action taken back.
        new: the class of a relabel; the other picture of a verdict on a pair.
        by: who.
        when: ISO 8601, UTC.
    """

    id: str
    action: str
    old: str = ""
    new: str = ""
    by: str = ""
    when: str = ""

    @property
    def pair(self) -> Pair | None:
        """The two pictures of a verdict on a pair, else None."""
        on_pair = self.action == "not_duplicate" or (self.action == "keep" and self.new)
        return frozenset((self.id, self.new)) if on_pair else None


@dataclass(frozen=True)
class Verdicts:
    """What stands after every line was read in order.

    Attributes:
        standing: verdicts not undone and not overruled, in the order given.
        notices: what was odd about the file, for the reader.
    """

    standing: list[Decision] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @cached_property
    def dropped(self) -> set[str]:
        """Pictures taken out; a later keep or relabel brings one back."""
        last = {one.id: one.action for one in self.standing if one.pair is None}
        return {image_id for image_id, action in last.items() if action == "drop"}

    @cached_property
    def labels(self) -> dict[str, str]:
        """New class name by picture."""
        return {one.id: one.new for one in self.standing if one.action == "relabel"}

    @cached_property
    def kept(self) -> set[str]:
        """Single pictures somebody said to keep as they are."""
        return {
            one.id for one in self.standing if one.action == "keep" and not one.pair
        }

    @cached_property
    def pairs(self) -> dict[Pair, str]:
        """`keep` or `not_duplicate` by pair; the later verdict counts."""
        return {one.pair: one.action for one in self.standing if one.pair}


# --- the file -----------------------------------------------------------------------


def find_path(data_dir: Path) -> Path:
    """Where the verdicts on `data_dir` are kept, whether or not there are any.

    `SKETCHBOOK_DECISIONS` names another file, for data on a read-only disk or a file
    that a team keeps in git.
    """
    named = os.environ.get(PLACE)
    if named:
        return Path(os.path.abspath(Path(named).expanduser()))
    return data_dir.parent / f"{data_dir.name}-decisions" / "decisions.csv"


def append(path: Path, decision: Decision) -> Decision:
    """Add one line and wait until the disk has it; returns it with `by` and `when`.

    Raises:
        ValueError: an unknown action, an id with a line break, or no right to write.
    """
    check_action(decision.action)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    row = [decision.id, decision.action, decision.old, decision.new]
    row += [decision.by or _who(), decision.when or now]
    if any("\n" in value or "\r" in value for value in row):
        raise ValueError(
            f"a verdict should fit on one line, but {row[0]!r} has a line break in it; "
            "rename the picture"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append_line(path, row)
    except PermissionError as error:
        raise ValueError(
            f"verdicts should go to {path}, but that may not be written; set the "
            f"environment variable {PLACE} to a file of yours"
        ) from error
    return Decision(*row)


def check_action(action: str) -> None:
    """Raise ValueError unless `action` is known."""
    if action not in ACTIONS:
        raise ValueError(f"an action must be one of {ACTIONS}, but {action!r} came")


def _append_line(path: Path, row: Sequence[str]) -> None:
    """One `write` of whole lines; a torn last line stays a line of its own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    size = path.stat().st_size if path.exists() else 0
    if not size:
        writer.writerow(COLUMNS)
    elif not _ends_line(path):
        text.write("\n")
    writer.writerow(row)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(handle, text.getvalue().encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for this user id, as in a container
        return ""


def read_decisions(path: Path) -> Verdicts:
    """The verdicts that stand; a missing file is none.

    Lines edited by hand, torn by a kill or naming unknown actions are left out and
    reported, each with its line number; the file is not changed.
    """
    if not path.exists():
        return Verdicts()
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    notices: list[str] = []
    rows = _parse(text, path.name, notices)
    return Verdicts(_settle(rows, path.name, notices), notices)


def _parse(text: str, name: str, notices: list[str]) -> list[tuple[int, Decision]]:
    lines = text.splitlines()
    header, first = list(COLUMNS), 0
    if lines and {"id", "action"} <= set(_cells(lines[0])):
        header, first = _cells(lines[0]), 1
    elif lines:
        notices.append(f"{name} has no header line; columns are taken as {COLUMNS}")
    torn = len(lines) if text and not text.endswith(("\n", "\r")) else 0
    found = []
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            continue
        cells = dict(zip(header, _cells(line), strict=False))
        problem = _find_problem(cells, is_last_open=number == torn)
        if problem:
            notices.append(f"{name} line {number} is left out: {problem}")
            continue
        values = {column: cells.get(column, "") for column in COLUMNS}
        found.append((number, Decision(**values)))
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]), [])]


def _find_problem(cells: Mapping[str, str], *, is_last_open: bool) -> str:
    """Why a line cannot be used; empty when it can."""
    action = cells.get("action", "")
    if is_last_open and not _is_time(cells.get("when", "")):
        return "it was cut while being written"
    if not cells.get("id") or action not in ACTIONS:
        return f"`action` should be one of {', '.join(ACTIONS)}, but is {action!r}"
    if action in ("relabel", "not_duplicate") and not cells.get("new"):
        return f"{action} needs a value in `new`"
    return ""


def _is_time(text: str) -> bool:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _settle(
    rows: Sequence[tuple[int, Decision]], name: str, notices: list[str]
) -> list[Decision]:
    """The lines that stand: undos take back the last verdict they name."""
    standing: list[Decision] = []
    for number, one in rows:
        if one.action != "undo":
            standing.append(one)
        elif (place := find_undone(standing, one)) is not None:
            standing.pop(place)
        else:
            notices.append(f"{name} line {number} undoes nothing: {one.id!r}")
    return standing


def find_undone(standing: Sequence[Decision], undo: Decision) -> int | None:
    """Place of the last verdict that `undo` names; with only an id, that id's last."""
    for place in range(len(standing) - 1, -1, -1):
        one = standing[place]
        is_named = not undo.old or (undo.old, undo.new) == (one.action, one.new)
        if one.id == undo.id and is_named:
            return place
    return None


# --- the overlay --------------------------------------------------------------------


def overlay(manifest: pd.DataFrame, verdicts: Verdicts) -> pd.DataFrame:
    """The manifest with relabels applied and dropped rows in a subset of their own.

    Rows, their order and the classes stay: a picture is `dropped`, not gone, and a
    test picture is always predicted. A verdict that cannot be followed is reported.

    Returns:
        A new table; `attrs["notices"]` grows by what was done and what was not.
    """
    table = manifest.copy()
    table.attrs = {**manifest.attrs, "notices": list(manifest.attrs.get("notices", []))}
    notices = table.attrs["notices"]
    notices += verdicts.notices
    known = set(table["image_id"])
    named = {one.id for one in verdicts.standing}
    named |= {one.new for one in verdicts.standing if one.pair}
    if named - known:
        some = ", ".join(sorted(named - known)[:3])
        notices.append(
            f"{len(named - known)} pictures of decisions.csv are not in the data: "
            f"{some}"
        )
    relabelled = _apply_labels(table, verdicts.labels, notices)
    dropped = _apply_drops(table, verdicts.dropped & known, notices)
    refuted = sum(action == "not_duplicate" for action in verdicts.pairs.values())
    if relabelled or dropped or refuted:
        notices.append(
            f"decisions.csv: {dropped} pictures dropped, {relabelled} relabelled, "
            f"{refuted} pairs are no duplicates"
        )
    return table


def _apply_labels(
    table: pd.DataFrame, labels: Mapping[str, str], notices: list[str]
) -> int:
    train = manifests.train_rows(table)
    by_name = {
        unicodedata.normalize("NFC", name): (label, name)
        for label, name in zip(train["label"], train["class_name"], strict=True)
    }
    is_train = (table["subset"] == "train").to_numpy()
    left = train["label"].value_counts().to_dict()
    changed = 0
    for image_id, name in labels.items():
        rows = table.index[(table["image_id"] == image_id).to_numpy() & is_train]
        if not len(rows):
            continue
        old = table.at[rows[0], "label"]
        new, spelt = by_name.get(unicodedata.normalize("NFC", name), (None, ""))
        if new is None:
            close = difflib.get_close_matches(name, list(by_name), 1)
            hint = f"; is {close[0]!r} meant?" if close else ""
            notices.append(f"{image_id} cannot become {name!r}, no such class{hint}")
        elif left[old] == 1 and new != old:
            notices.append(
                f"{image_id} stays: its class would be left without pictures"
            )
        elif new != old:
            table.loc[rows, ["label", "class_name"]] = [new, spelt]
            left[old], left[new] = left[old] - 1, left[new] + 1
            changed += 1
    return changed


def _apply_drops(table: pd.DataFrame, ids: set[str], notices: list[str]) -> int:
    rows = table[table["image_id"].isin(ids)]
    test = int((rows["subset"] == "test").sum())
    if test:
        notices.append(f"{test} test pictures cannot be dropped; they are predicted")
    left = table.loc[table["subset"] == "train", "label"].value_counts().to_dict()
    dropped = 0
    for row, label in rows.loc[rows["subset"] == "train", "label"].items():
        if left[label] == 1:
            name = table.at[row, "image_id"]
            notices.append(f"{name} stays: its class would be left without pictures")
            continue
        left[label] -= 1
        table.at[row, "subset"] = DROPPED
        dropped += 1
    return dropped


def without_refuted(pairs: pd.DataFrame, verdicts: Verdicts) -> pd.DataFrame:
    """The pairs that nobody called `not_duplicate`, index reset."""
    refuted = {pair for pair, action in verdicts.pairs.items() if action != "keep"}
    ends = zip(pairs["image_id_a"], pairs["image_id_b"], strict=True)
    stands = [frozenset(pair) not in refuted for pair in ends]
    return pairs.loc[pd.Series(stands, pairs.index, bool)].reset_index(drop=True)


def copy_used(data_dir: Path, run_dir: Path) -> None:
    """Keep the verdicts a run goes by in its folder; none where there are none."""
    source, target = find_path(data_dir), run_dir / "decisions.csv"
    if source.exists():
        with workspace.atomic_path(target) as temporary:
            temporary.write_bytes(source.read_bytes())
    else:
        target.unlink(missing_ok=True)  # of an earlier run of this name
