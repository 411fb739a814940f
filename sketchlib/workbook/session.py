"""What a notebook's first code cell does: check, open the run, say who made it.

`start` reads the notebook's own parameter cell as a schema, so that plain papermill
and JupyterLab get the same checks as `sketch run`. Progress is a bar for whoever
sits in front of it and one line an epoch for a log. Limits: under plain papermill a
parameter the notebook does not know still only warns.
"""

import contextlib
import csv
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from sketchlib import workspace
from sketchlib.analysis import (
    breakdown,
    composite_scores,
    ensemble,
    joining,
    leakage,
    likeness,
)
from sketchlib.data import attributes, conflicts, decisions, groups, manifest, splits
from sketchlib.training import budget, extras, predictions
from sketchlib.training import folds as fold_runs
from sketchlib.workbook import parameters, trackers


@dataclasses.dataclass(frozen=True)
class Session:
    """An open notebook.

    Attributes:
        run: its run folder and record.
        data_dir: the user's data; only read.
        runs_dir: everything is written below it.
        cache_dir: safe to delete.
    """

    run: workspace.Run
    data_dir: Path
    runs_dir: Path

    @property
    def columns(self) -> manifest.Columns:
        """The user's column names."""
        return manifest.make_columns(self.run.record["parameters"].get("columns", []))

    @property
    def cache_dir(self) -> Path:
        return self.runs_dir / "cache"


def start(notebook: str, namespace: dict[str, Any]) -> Session:
    """Check the parameters, open the run, seed, and print one line of provenance.

    Args:
        notebook: stem, such as `03_train`.
        namespace: the notebook's `globals()`; values are put back as they are meant
            (`3e-4` from YAML is text until then).
    Raises:
        ValueError: a parameter has the wrong type or is out of range.
        FileNotFoundError: the data folder does not exist.
    """
    schema = parameters.read_parameters(parameters.find_notebook(notebook))
    asked: dict[str, Any] = {
        name: parameters.coerce(entry, namespace[name], f"notebook {notebook}")
        for name, entry in schema.items()
    }
    namespace.update(asked)
    data_dir = workspace.resolve_path(asked["data_dir"])
    runs_dir = workspace.resolve_path(asked["runs_dir"])
    check_data_dir(data_dir)
    trackers.check_tracker(asked.get("tracker", ""))
    facts = {key: asked[key] for key in ("hypothesis", "baseline") if key in asked}
    run = workspace.open_run(
        runs_dir, asked["run_name"], asked, notebook=notebook, **facts
    )
    workspace.seed_everything(asked.get("seed", 0))
    versions = run.record["versions"]
    print(
        f"run {run.name} · data {data_dir.name} · commit "
        f"{run.record['commit'] or 'none'} · python {versions['python']} · "
        f"torch {versions.get('torch', '-')} · timm {versions.get('timm', '-')}"
    )
    return Session(run, data_dir, runs_dir)


def read_defaults(notebook: str) -> dict[str, Any]:
    """The defaults of another notebook's parameters, such as those of `03_train`."""
    schema = parameters.read_parameters(parameters.find_notebook(notebook))
    return {name: entry.default for name, entry in schema.items()}


def check_data_dir(data_dir: Path) -> None:
    """Raise FileNotFoundError, with the way out, unless the folder is there."""
    if not data_dir.is_dir():
        raise FileNotFoundError(
            f"`data_dir` should be a folder with train.csv and train/, but {data_dir} "
            "does not exist; run `sketch demo` for the demo drawings, or give "
            "`-p data_dir DIR`"
        )


def read_manifest(session: Session) -> pd.DataFrame:
    """The manifest under the verdicts of the review; what was unusual is printed.

    The run folder keeps a copy of the verdicts it goes by.
    """
    table = manifest.read_manifest(session.data_dir, session.columns)
    table = decisions.overlay(table, read_decisions(session))
    decisions.copy_used(session.data_dir, session.run.dir)
    for notice in table.attrs["notices"]:
        print(f"notice: {notice}")
    return table


def read_decisions(session: Session) -> decisions.Verdicts:
    """The verdicts on this data that stand now."""
    return decisions.read_decisions(decisions.find_path(session.data_dir))


def make_folds(
    session: Session, table: pd.DataFrame, copies: pd.DataFrame | None
) -> pd.DataFrame:
    """The folds, or the hold-out, that the notebook's parameters ask for.

    Args:
        session: of 01_eda.
        table: the manifest.
        copies: `image_id, group` to keep whole; None for none.
    """
    asked = session.run.record["parameters"]
    kept = [] if copies is None else [copies]
    if asked["group_column"]:
        name = asked["group_column"]
        kept.append(manifest.read_groups(session.data_dir, name, session.columns))
    joined = splits.join_groups(*kept) if kept else None
    if asked["hold_out"] > 0:
        return splits.make_hold_out(table, joined, asked["hold_out"], asked["seed"])
    return splits.make_folds(table, joined, asked["folds"], asked["seed"])


def read_folds(session: Session, audit_run: str, table: pd.DataFrame) -> pd.DataFrame:
    """The folds that 01_eda wrote, checked against the manifest.

    Raises:
        FileNotFoundError: 01_eda has not run.
        ValueError: the folds are of other data.
    """
    folds = read_audit(session, audit_run, "folds.csv")
    splits.check_folds(folds, table)
    return folds


def read_extra(
    session: Session,
    file: str,
    variants_run: str,
    table: pd.DataFrame,
    folds: pd.DataFrame,
) -> pd.DataFrame:
    """The user's train-only pictures and the variants of a 02_augmentation run.

    Raises:
        FileNotFoundError: a file that is named is missing.
        ValueError: see `extras.read_extra` and `offline.read_variants`.
    """
    extra = extras.read_extra(session.data_dir, file, table)
    if not variants_run:
        return extra
    from sketchlib.training import offline  # brings albumentations

    made = offline.read_variants(session.runs_dir / variants_run, folds)
    return pd.concat([extra, made], ignore_index=True) if len(extra) else made


def read_audit(session: Session, audit_run: str, name: str) -> pd.DataFrame:
    """A table of the 01_eda run, e.g. `findings.csv`.

    Raises:
        FileNotFoundError: 01_eda has not run.
    """
    path = session.runs_dir / audit_run / name
    if not path.exists():
        raise FileNotFoundError(
            f"`{name}` was expected in {path.parent}; run 01_eda first (`sketch run "
            f"01_eda -p run_name {audit_run}`)"
        )
    return pd.read_csv(path, keep_default_na=False, na_values=["nan", "NaN"])


def with_conflicts(
    session: Session, audit_run: str, task: fold_runs.Task, policy: str
) -> fold_runs.Task:
    """The task with the audit's copies of two labels taught by `policy`; says so.

    Args:
        session: of 03_train.
        audit_run: the 01_eda run that found the copies.
        task: see there.
        policy: one of `conflicts.POLICIES`; `keep` leaves the task as it is.
    """
    if policy == "keep":
        return task
    copies = read_audit(session, audit_run, "groups.csv")
    found = groups.label_conflicts(copies, task.table)
    sets = conflicts.number_sets(task.table["image_id"], found)
    print(
        f"notice: {sets.max() + 1} drawings stand in two classes, as "
        f"{(sets >= 0).sum()} pictures; what they teach: {policy}"
    )
    return dataclasses.replace(task, policy=policy, conflicts=found)


def say_leakage(session: Session, audit_run: str) -> None:
    """What copies are worth on this data, beside a score: honest and board-like."""
    path = session.runs_dir / audit_run / "leakage.json"
    if path.exists():
        say(leakage.tell(workspace.read_json(path)))


def read_confusions(session: Session, table: pd.DataFrame) -> pd.DataFrame | None:
    """Share of mistakes by pair of classes, of the newest 03_train run; None before.

    A run of other data or other classes does not count.
    """
    names = list_runs(session, "03_train")
    records = {name: read_run(session, name).get("finished", "") for name in names}
    for name in sorted(names, key=lambda one: records[one], reverse=True):
        path = session.runs_dir / name / "oof.npz"
        with contextlib.suppress(ValueError, FileNotFoundError):
            counts = breakdown.confusion(predictions.read_predictions(path), table)
            return likeness.rate_confusions(counts)
    return None


def write_tables(session: Session, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write each table as `<name>.csv` into the run folder, whole or not at all.

    Texts are quoted, so that a class called `=cmd()` stays one text in its column.
    """
    for name, table in tables.items():
        with workspace.atomic_path(session.run.dir / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)


def read_sample(session: Session, table: pd.DataFrame) -> pd.DataFrame | None:
    """`sample_submission.csv` as text, checked; None where there is none.

    Raises:
        ValueError: it does not fit the test pictures.
    """
    path = session.data_dir / "sample_submission.csv"
    if not path.exists():
        return None
    sample = manifest.read_table(path)
    manifest.check_sample(sample, table, path, session.columns)
    return sample


def read_run(session: Session, run: str) -> dict[str, Any]:
    """The `run.json` of another run.

    Raises:
        FileNotFoundError: there is no such run.
    """
    path = session.runs_dir / run / "run.json"
    if not path.exists():
        raise FileNotFoundError(
            f"run {run!r} was expected in {session.runs_dir}, but there is none; there "
            f"are: {', '.join(list_runs(session, '')) or 'no runs yet'}"
        )
    return workspace.read_json(path)


def list_runs(session: Session, notebook: str) -> list[str]:
    """Names of the finished runs of `notebook` (of any, when empty), sorted."""
    found = []
    for path in sorted(session.runs_dir.glob("*/run.json")):
        record = workspace.read_json(path)
        wanted = not notebook or record.get("notebook") == notebook
        if wanted and record.get("state") == "done":
            found.append(path.parent.name)
    return found


def read_predictions(
    session: Session, runs: list[str], name: str
) -> dict[str, predictions.Predictions]:
    """`oof.npz` or `test.npz` of each run, without pictures dropped since.

    Raises:
        ValueError: no runs were given or found.
        FileNotFoundError: a run has no such file.
    """
    if not runs:
        raise ValueError(
            f"at least one finished 03_train run was expected in {session.runs_dir}, "
            "but there is none; run 03_train first, or name `runs`"
        )
    table = manifest.read_manifest(session.data_dir, session.columns)
    table = decisions.overlay(table, read_decisions(session))
    found = {}
    for run in runs:
        one = predictions.read_predictions(session.runs_dir / run / name)
        found[run] = joining.without_dropped(one, table)
    return found


def read_product(
    session: Session, runs: list[str], fold_vote: str = ""
) -> predictions.Predictions:
    """Runs of one attribute each as predictions of the classes they make together.

    Args:
        session: whose label is made of the attributes, or numbers their rows.
        runs: one run for each attribute, trained with `columns: […, +NAME]`.
        fold_vote: how folds vote on the test pictures; empty for `oof.npz`.
    Raises:
        ValueError: a run knows another attribute, or the runs differ in images or
            folds.
    """
    names = [
        composite_scores.name_attribute(
            read_run(session, run)["parameters"].get("columns", []), run
        )
        for run in runs
    ]
    parts = attributes.read_parts(session.data_dir, session.columns, names)
    assert parts is not None  # a run names an attribute
    table = manifest.read_manifest(session.data_dir, session.columns)
    folders = [session.runs_dir / run for run in runs]
    found = [
        ensemble.read_votes(folder, fold_vote)
        if fold_vote
        else predictions.read_predictions(folder / "oof.npz")
        for folder in folders
    ]
    made = composite_scores.multiply(
        dict(zip(names, found, strict=True)), parts, manifest.class_names(table)
    )
    kept = decisions.overlay(table, read_decisions(session))
    return joining.without_dropped(made, kept)


def find_parts(
    session: Session, records: Mapping[str, Mapping[str, Any]]
) -> attributes.Parts | None:
    """What the classes are made of, by the label or by the first run that says so."""
    asked = [record["parameters"].get("attributes", []) for record in records.values()]
    names = next((list(found) for found in asked if found), [])
    return attributes.read_parts(session.data_dir, session.columns, names)


def is_interactive() -> bool:
    """Whether a person sits in front of the kernel (JupyterLab, not papermill)."""
    return "JPY_SESSION_NAME" in os.environ and "SKETCHBOOK_HEADLESS" not in os.environ


class Progress:
    """A bar for a person, a line a step for a log, a record for `sketch runs`."""

    def __init__(
        self,
        session: Session,
        total: int,
        unit: str,
        clock: budget.Clock | None = None,
    ) -> None:
        self.session = session
        self.clock = clock
        self.total = total
        self.unit = unit
        self.done = 0
        self._started = time.perf_counter()
        asked = session.run.record["parameters"]
        self._tracker = trackers.Tracker(
            asked.get("tracker", ""), session.run.dir, asked
        )
        self._bar = (
            tqdm(total=total, unit=unit, mininterval=1) if is_interactive() else None
        )

    def step(self, text: str, steps: int = 1) -> None:
        """`steps` more of the total are done; `text` says what."""
        self.done += steps
        seconds = time.perf_counter() - self._started
        left = seconds / max(self.done, 1) * max(self.total - self.done, 0)
        self.session.run.progress(text, self.done / max(self.total, 1), left)
        if self._bar is None:
            print(f"{text} · {format_seconds(left)} left", flush=True)
            return
        self._bar.set_postfix_str(text)
        self._bar.update(steps)
        if self.done >= self.total:
            self._bar.close()

    def reach(self, done: int, total: int) -> None:
        """`done` of `total`, for work that counts itself; a log gets every tenth."""
        self.total = total
        new = done - self.done
        if self._bar is not None or done == total or new >= total / 10:
            self.step(f"{done:,} of {total:,} {self.unit}s", new)

    def epoch(self, fold: int, folds: int, row: dict[str, float]) -> None:
        """One epoch of a fold is done; also logged to `metrics.jsonl`."""
        self.session.run.log(fold=fold, **row)
        self._tracker.epoch(fold, row)
        held = "" if np.isnan(row["valid_loss"]) else f"{row['valid_accuracy']:.3f}"
        where = f"fold {fold + 1}/{folds}" if fold >= 0 else "all rows"
        self.step(
            f"{where} · epoch {row['epoch']} · loss "
            f"{row['train_loss']:.3f} · held-out accuracy {held or '-'} · "
            f"{row['seconds']:.0f} s"
        )

    def follow(self, fold: int) -> Callable[[dict[str, float]], None]:
        """A callback for a fold's epochs; the clock learns the speed from it."""
        clock = self.clock
        assert clock is not None  # given where folds are trained

        def on_epoch(row: dict[str, float]) -> None:
            clock.saw(row["seconds"], int(row.get("side_px", clock.plan.side_px)))
            self.total = clock.count_all()
            self.epoch(fold, clock.plan.folds, row)

        return on_epoch


def counter(session: Session, unit: str) -> Callable[[int, int], None]:
    """A callback of (done, total) whose bar appears with the first call."""
    made: list[Progress] = []

    def reach(done: int, total: int) -> None:
        if not made:
            made.append(Progress(session, total, unit))
        made[0].reach(done, total)

    return reach


def say(text: str) -> None:
    """Show Markdown built from values."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def format_seconds(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
