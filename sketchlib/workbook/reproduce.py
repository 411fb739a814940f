"""`sketch reproduce RUN`: run it again from its `run.json`, and compare.

The second run stands beside the first, under the same data, folds and caches, and as
many processor threads, since their number changes how sums are rounded. Equal
means bit-equal history and predictions; within noise means that they differ by less
than the score's own interval; everything else is different, with what changed in
between. Limits: a run on another machine is compared all the same, but rarely equal.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sketchlib import workspace
from sketchlib.training import predictions
from sketchlib.workbook import jobs, parameters, runner

EQUAL, NOISE, DIFFERENT = "equal", "within noise", "different"
_TIMING = {"seconds", "images_per_second"}
_COPIED = ("budget.json", "batch.json")  # what was measured is part of the run


@dataclass(frozen=True)
class Outcome:
    """What came of it: one of EQUAL, NOISE, DIFFERENT, and the reasons."""

    verdict: str
    reasons: list[str]

    @property
    def text(self) -> str:
        """One paragraph."""
        return f"{self.verdict}: " + "; ".join(self.reasons)


def reproduce(run_dir: Path, *, keep: bool = False) -> Outcome:
    """Run `run_dir` again as `<name>-again` and compare the two.

    Args:
        run_dir: a finished 03_train run.
        keep: leave the second run's folder even where it is equal.
    Raises:
        FileNotFoundError: there is no such run.
        ValueError: it is not finished, or its parameters are no longer there.
        RuntimeError: the second run failed.
    """
    record = read_finished(run_dir)
    notebook = parameters.find_notebook(record["notebook"])
    again = run_dir.with_name(f"{run_dir.name}-again")
    asked = make_overrides(record, notebook, run_dir, again.name)
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    for name in _COPIED:
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, again / name)
    job = dataclasses.replace(
        jobs.make_job(notebook, asked), threads=int(record.get("threads", 0))
    )
    outcome = runner.run_notebook(job)
    if outcome.exit_code:
        raise RuntimeError(f"the second run failed: {outcome.message}")
    found = compare(run_dir, again)
    if found.verdict == EQUAL and not keep:
        shutil.rmtree(again)
    return found


def read_finished(run_dir: Path) -> dict[str, Any]:
    """The record of a finished run with predictions.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: it did not finish, or predicts nothing.
    """
    path = run_dir / "run.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no run is called `{run_dir.name}` in {run_dir.parent}; see `sketch runs`"
        )
    record = workspace.read_json(path)
    if record.get("state") != "done" or record.get("notebook") != "03_train":
        raise ValueError(
            f"`{run_dir.name}` should be a finished run of 03_train, but is a run of "
            f"{record.get('notebook')} in state {record.get('state')}; start it with "
            "`sketch run 03_train`"
        )
    return dict(record)


def make_overrides(
    record: dict[str, Any], notebook: Path, run_dir: Path, name: str
) -> dict[str, parameters.Value]:
    """The run's parameters under another name, checked against today's notebook."""
    schema = parameters.read_parameters(notebook)
    asked = dict(record["parameters"])
    gone = sorted(set(asked) - set(schema))
    if gone:
        raise ValueError(
            f"`{run_dir.name}` was run with {', '.join(gone)}, which {notebook.name} "
            f"no longer has; check out its commit {record.get('commit') or '(unknown)'}"
        )
    asked |= {"run_name": name, "runs_dir": str(run_dir.parent), "fresh": True}
    return parameters.check_overrides(schema, asked, f"{run_dir.name}/run.json")


def compare(first: Path, second: Path) -> Outcome:
    """Compare the histories and predictions of two run folders."""
    differing = [*_compare_history(first, second)]
    gap = 0.0
    for name in ("oof.npz", "test.npz"):
        one, two = (predictions.read_predictions(d / name) for d in (first, second))
        if list(one.image_ids) != list(two.image_ids):
            return Outcome(DIFFERENT, [f"{name} is of other pictures"])
        if not np.array_equal(one.logits, two.logits):
            gap = max(gap, float(np.abs(one.probs - two.probs).max()))
            differing.append(f"{name} differs by up to {gap:.2g} in probability")
    if not differing:
        rows = len(workspace.read_jsonl(first / "metrics.jsonl"))
        return Outcome(EQUAL, [f"{rows} epochs and all predictions, bit by bit"])
    scores = [workspace.read_json(d / "run.json")["scores"] for d in (first, second)]
    inside = (
        scores[0]["accuracy_low"] <= scores[1]["accuracy"] <= scores[0]["accuracy_high"]
    )
    told = f"accuracy {scores[0]['accuracy']:.4f} then, {scores[1]['accuracy']:.4f} now"
    verdict = NOISE if inside else DIFFERENT
    return Outcome(verdict, [told, *differing, *_explain(first, second)])


def _compare_history(first: Path, second: Path) -> list[str]:
    one, two = (
        {
            (row["fold"], row["epoch"]): row
            for row in workspace.read_jsonl(d / "metrics.jsonl")
        }
        for d in (first, second)
    )
    if set(one) != set(two):
        return [f"{len(one)} epochs then, {len(two)} now"]
    for key, row in one.items():
        for name in sorted(set(row) - _TIMING):
            pair = row[name], two[key].get(name)
            if pair[0] != pair[1] and not all(value != value for value in pair):
                fold, epoch = key
                return [
                    f"first in fold {fold}, epoch {epoch}: {name} {pair[0]} → {pair[1]}"
                ]
    return []


def _explain(first: Path, second: Path) -> list[str]:
    """What changed between the runs that could be the reason."""
    one, two = (workspace.read_json(d / "run.json") for d in (first, second))
    reasons = [
        f"{name} {one['versions'].get(name)} → {version}"
        for name, version in two["versions"].items()
        if one["versions"].get(name) != version
    ]
    reasons += [
        f"{name} {one.get(name)} → {two.get(name)}"
        for name in ("commit", "machine", "threads", "data")
        if name in one and one[name] != two.get(name)
    ]
    if not reasons and not one["parameters"].get("deterministic"):
        reasons = ["nothing that is recorded changed; `deterministic: true` is strict"]
    return reasons or ["nothing that is recorded changed"]
