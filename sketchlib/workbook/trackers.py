"""Experiment trackers, beside the files: MLflow, W&B, TensorBoard, Trackio.

The run folder stays the truth; a tracker gets a copy of each epoch while a run
trains, or of whole runs afterwards (`sketch export`), through accelerate's adaptors.
Where the copy goes is the tracker's own business (`MLFLOW_TRACKING_URI`,
`WANDB_MODE=offline` …); TensorBoard's files lie in `<runs>/tensorboard/<run>`.
Limits: a resumed run becomes a second run of the tracker.
"""

import csv
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sketchlib import workspace

TRACKERS = {
    "mlflow": "mlflow",
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
}  # name → package
PROJECT = "sketchbook"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would execute


def check_tracker(name: str) -> None:
    """Raise ValueError, with the remedy, unless the tracker can be used; "" is none."""
    if name and name not in TRACKERS:
        raise ValueError(
            f"`tracker` must be one of {', '.join(TRACKERS)}, but {name!r} came"
        )
    if name and importlib.util.find_spec(TRACKERS[name]) is None:
        raise ValueError(
            f"`tracker` {name} needs the package {TRACKERS[name]}, which is not "
            f"installed; run `pip install {TRACKERS[name]}`, or leave `tracker` empty: "
            "the files in the run folder hold the same"
        )


class Tracker:
    """One run in a tracker; started by the first record, nothing when `name` is ""."""

    def __init__(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.name, self.folder, self.parameters = name, folder, parameters
        self._made: Any = None

    def log(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Copy numbers; what is not a finite number stays in the files alone."""
        numbers = {key: float(v) for key, v in values.items() if _is_number(v)}
        if self.name and numbers:
            self._start().log(numbers, step=step)

    def epoch(self, fold: int, row: Mapping[str, Any]) -> None:
        """Copy one epoch of a fold: `fold0/valid_accuracy`, the epoch as the step."""
        values = {f"fold{fold}/{k}": v for k, v in row.items() if k != "epoch"}
        self.log(values, int(row.get("epoch", 0)))

    def finish(self) -> None:
        """Close the copy."""
        if self._made is not None:
            self._made.finish()
            self._made = None

    def _start(self) -> Any:
        if self._made is None:
            check_tracker(self.name)
            self._made = _make(self.name, self.folder)
            self._made.start()
            shown = {key: _as_plain(v) for key, v in self.parameters.items()}
            self._made.store_init_configuration(shown)
        return self._made


def _make(name: str, folder: Path) -> Any:
    """The adaptor of accelerate, not yet started."""
    from accelerate import tracking

    if name == "tensorboard":
        place = folder.parent / "tensorboard"
        return tracking.TensorBoardTracker(folder.name, logging_dir=place)
    if name == "mlflow":
        return tracking.MLflowTracker(PROJECT, run_name=folder.name)
    if name == "wandb":
        return tracking.WandBTracker(PROJECT, name=folder.name)
    return tracking.TrackioTracker(PROJECT, name=folder.name)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) < float("inf")  # NaN compares false


def _as_plain(value: Any) -> Any:
    """A list as text: trackers hold numbers, switches and texts."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


# --- finished runs ----------------------------------------------------------


def export_runs(
    runs: Iterable[tuple[Path, dict[str, Any]]], kind: str, target: Path
) -> str:
    """Copy runs elsewhere; returns where they are now.

    Args:
        runs: folder and record of each, as `report.read_runs`.
        kind: csv, jsonl, or a tracker.
        target: the file for csv and jsonl.
    Raises:
        ValueError: an unknown kind, or its package is missing.
    """
    if kind == "csv":
        return str(_write_csv(runs, target))
    if kind == "jsonl":
        lines = [json.dumps(_flatten(*run), ensure_ascii=False) for run in runs]
        return str(workspace.write_text(target, "".join(f"{x}\n" for x in lines)))
    check_tracker(kind)
    for folder, record in runs:
        _replay(Tracker(kind, folder, record.get("parameters", {})), record)
    return os.environ.get("MLFLOW_TRACKING_URI", kind) if kind == "mlflow" else kind


def _replay(tracker: Tracker, record: dict[str, Any]) -> None:
    path = tracker.folder / "metrics.jsonl"
    for row in workspace.read_jsonl(path) if path.exists() else []:
        numbers = {key: value for key, value in row.items() if key != "fold"}
        tracker.epoch(int(row.get("fold", 0)), numbers)
    facts = {key: record.get(key) for key in ("seconds", "peak_memory_mb")}
    tracker.log({**(record.get("scores") or {}), **facts})
    tracker.finish()


def _flatten(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """One flat row: facts, `parameters.*`, `scores.*`."""
    facts = ("state", "notebook", "started", "finished", "seconds", "commit")
    row = {"run": folder.name} | {key: record.get(key, "") for key in facts}
    row |= {key: record.get(key, "") for key in ("hypothesis", "baseline")}
    for part in ("parameters", "scores"):
        found = record.get(part) or {}
        row |= {f"{part}.{key}": _as_plain(value) for key, value in found.items()}
    return row


def _write_csv(runs: Iterable[tuple[Path, dict[str, Any]]], target: Path) -> Path:
    rows = [_flatten(*run) for run in runs]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [{key: _as_cell(value) for key, value in row.items()} for row in rows]
    with (
        workspace.atomic_path(target) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as out,
    ):
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(cells)
    return target


def _as_cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    is_formula = isinstance(value, str) and value.startswith(_FORMULA)
    return f"'{value}" if is_formula else value
