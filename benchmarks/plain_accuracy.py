"""Is accuracy paid for speed? Runs again without what makes them fast, and compared.

Usage: python benchmarks/plain_accuracy.py RUNS_DIR [RUN …]
Each finished run of 03_train (lite0 and lite1 of params/workbooks/cpu.yaml unless
named) trains again as RUN-plain, on the same folds, pictures and seed, for the same
epochs of each fold: in fp32, NCHW, with torch's own depthwise gradients, norms apart
from their convolutions, and every layer learning. What ended early goes on where it
was. Gains of the fast runs are paired, their intervals draw groups; so is that of the
vote of all runs.
"""

import concurrent.futures
import dataclasses
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from table import plain_row, write_rows

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import manifest
from sketchlib.training import launch, predictions
from sketchlib.workbook import jobs, parameters, reproduce, runner

PLAIN: dict[str, parameters.Value] = {
    "precision": "fp32",
    "layout": "nchw",
    "depthwise": "torch",
    "norm": "still",
    "frozen": False,
    "unfreeze_last": 0,
    "workers": 0,
    "fresh": False,
}


def main(runs_dir: Path, names: Sequence[str]) -> None:
    fast = [runs_dir / name for name in names]
    with concurrent.futures.ThreadPoolExecutor(len(fast)) as pool:
        plain = list(pool.map(train_plainly, fast, [len(fast)] * len(fast)))
    records = [reproduce.read_finished(run) for run in fast]
    asked = records[0]["parameters"]
    table = manifest.read_manifest(
        workspace.resolve_path(asked["data_dir"]),
        manifest.make_columns(asked["columns"]),
    )
    groups = pd.read_csv(
        runs_dir / asked["audit_run"] / "folds.csv", dtype={"image_id": str}
    )
    ours = [predictions.read_predictions(run / "oof.npz") for run in fast]
    theirs = [predictions.read_predictions(run / "oof.npz") for run in plain]
    pairs = [*zip(names, theirs, ours, strict=True)]
    if len(fast) > 1:
        pairs.append(("vote", predictions.average(theirs), predictions.average(ours)))
    write_rows(
        "plain_accuracy",
        [make_row(*pair, table, groups) for pair in pairs],
    )
    for quick, slow in zip(fast, plain, strict=True):
        seconds = [read_seconds(run) for run in (slow, quick)]
        print(f"{quick.name}: an epoch {seconds[0]:.1f} s plain, {seconds[1]:.1f} fast")


def train_plainly(run_dir: Path, at_once: int) -> Path:
    """The folder of `run_dir` trained again without speed paths, or gone on with."""
    record = reproduce.read_finished(run_dir)
    notebook = parameters.find_notebook("03_train")
    again = run_dir.with_name(f"{run_dir.name}-plain")
    asked = reproduce.make_overrides(record, notebook, run_dir, again.name)
    schema = parameters.read_parameters(notebook)
    asked |= parameters.check_overrides(schema, PLAIN, "the plain parameters")
    again.mkdir(exist_ok=True)
    if not (again / "budget.json").exists():  # the epochs that each fold was given
        shutil.copyfile(run_dir / "budget.json", again / "budget.json")
    threads = max(1, len(launch.list_cores()) // at_once)
    job = dataclasses.replace(jobs.make_job(notebook, asked), threads=threads)
    outcome = runner.run_notebook(job)
    if outcome.exit_code:
        raise RuntimeError(f"the plain run failed: {outcome.message}")
    return again


def make_row(
    name: str,
    plain: predictions.Predictions,
    fast: predictions.Predictions,
    table: pd.DataFrame,
    groups: pd.DataFrame,
) -> dict[str, object]:
    """A row on what the speed paths cost.

    Met where the plain accuracy lies in the interval of the fast one, and the paired
    gain is not below zero beyond doubt.
    """
    found = scores.compare(plain, fast, table, groups)
    own = scores.summarise(fast, table, groups)
    low, high = own["accuracy_low"], own["accuracy_high"]
    return plain_row(
        f"accuracy for speed, {name}: fast (95 %) against plain, out of fold",
        f"{found.accuracy_b:.3f} ({low:.3f}-{high:.3f}) against "
        f"{found.accuracy_a:.3f}: {100 * found.gain:+.1f} points "
        f"({100 * found.low:+.1f} to {100 * found.high:+.1f})",
        "in the interval",
        low <= found.accuracy_a <= high and found.high >= 0,
    )


def read_seconds(run_dir: Path) -> float:
    """Median seconds of an epoch, with its scoring."""
    rows = workspace.read_jsonl(run_dir / "metrics.jsonl")
    return statistics.median(float(row["seconds"]) for row in rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:] or ["lite0", "lite1"])
