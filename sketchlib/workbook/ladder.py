"""From small to big by rule: a step that runs only if the rung below it was worth it.

A plan's step with `promote: {run: small, over: probe, at_least: 0.01}` waits for both
runs, compares them picture by picture (`scores.compare`), and runs only if the lower
end of the gain's interval is above `at_least`. The decision depends on the two files
alone, so that a plan that is started again decides the same; it is kept beside the
run, in `promotion.json`. Limits: one gain out of many gates may pass by luck.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import display, folders, parameters, report

FILE = "promotion.json"


@dataclasses.dataclass(frozen=True)
class Gate:
    """What must hold before a step runs.

    Attributes:
        run: the rung below, which has to have gained.
        over: the rung it is compared with.
        at_least: accuracy (-1 to 1) that the interval of the gain must lie above.
    """

    run: str
    over: str
    at_least: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """What came of a gate; `gain`, `low` and `high` are differences of accuracy."""

    step: str
    run: str
    over: str
    at_least: float
    gain: float
    low: float
    high: float
    images: int
    verdict: str
    promoted: bool

    @property
    def text(self) -> str:
        """The decision and its grounds, in a line."""
        word = "promoted" if self.promoted else "not promoted"
        return (
            f"{word}: {self.run} against {self.over} {describe_gain(self)}; the "
            f"interval must lie above {100 * self.at_least:+.1f}"
        )


def describe_gain(found: Any) -> str:
    """`+1.2 points (95 % +0.3 to +2.1), better`."""
    return (
        f"{100 * found.gain:+.1f} points (95 % {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}), {found.verdict}"
    )


def read_gate(entry: dict[str, Any], seen: Sequence[str], where: str) -> Gate | None:
    """The gate of a plan's step; None where it has none.

    Args:
        entry: the step as the plan says it.
        seen: names of the steps before it.
        where: the step, for the message.
    Raises:
        ValueError: an unknown setting or step, or a number out of range.
    """
    asked = entry.get("promote")
    if asked is None:
        return None
    for key in asked:
        if key not in ("run", "over", "at_least"):
            near = parameters.suggest(str(key), ["run", "over", "at_least"])
            raise ValueError(
                f"`promote` in {where} has no setting `{key}`{near}; it is "
                "{run: RUNG, over: RUNG_BELOW, at_least: GAIN}"
            )
    needs = entry.get("needs", [])
    run, over = asked.get("run", needs[-1] if needs else ""), asked.get("over", "")
    for key, name in (("run", run), ("over", over)):
        if name not in seen:
            raise ValueError(
                f"`{key}` of `promote` in {where} should be a step before it, but "
                f"{name!r} came{parameters.suggest(str(name), seen)}"
            )
    least = asked.get("at_least", 0.0)
    is_number = isinstance(least, int | float) and not isinstance(least, bool)
    if not is_number or not -1 <= least < 1 or run == over:
        raise ValueError(
            f"`promote` in {where} should compare two steps and ask for a gain in "
            f"accuracy from -1 to 1, but {asked!r} came"
        )
    return Gate(str(run), str(over), float(least))


def decide(step: str, gate: Gate, runs_dir: Path) -> Decision:
    """Compare the two rungs on the pictures both predicted; see the module.

    Raises:
        FileNotFoundError: a rung has no `oof.npz`.
        ValueError: they cannot be compared.
    """
    found = compare_runs(runs_dir, gate.over, gate.run)
    return Decision(
        step,
        gate.run,
        gate.over,
        gate.at_least,
        gain=found.gain,
        low=found.low,
        high=found.high,
        images=found.images,
        verdict=found.verdict,
        promoted=bool(found.low > gate.at_least),
    )


def compare_runs(runs_dir: Path, below: str, above: str) -> Any:
    """`scores.compare` of two runs, groups and labels as the upper one had them.

    Raises:
        FileNotFoundError: a run has no `oof.npz`.
        ValueError: they cannot be compared.
    """
    import pandas as pd  # half a second that reading a plan need not

    from sketchlib.analysis import scores
    from sketchlib.data import decisions, manifest
    from sketchlib.training import predictions

    asked = report.read_record(runs_dir / above).get("parameters", {})
    data_dir = workspace.resolve_path(str(asked.get("data_dir", "")))
    columns = manifest.make_columns(asked.get("columns", []))
    table = manifest.read_manifest(data_dir, columns)
    verdicts = decisions.read_decisions(decisions.find_path(data_dir))
    split = runs_dir / str(asked.get("audit_run", "")) / "folds.csv"
    groups = pd.read_csv(split, keep_default_na=False) if split.is_file() else None
    one, two = (
        predictions.read_predictions(runs_dir / name / "oof.npz")
        for name in (below, above)
    )
    kept = decisions.overlay(table, verdicts)
    return scores.compare(one, two, kept, groups, shared_only=True)


def keep(decision: Decision, runs_dir: Path) -> None:
    """Write the decision into the folder of its step's run."""
    folder = runs_dir / decision.step
    folder.mkdir(parents=True, exist_ok=True)
    workspace.write_json(folder / FILE, decision)


def read_decisions(runs_dir: Path) -> list[Decision]:
    """Every decision kept below `runs_dir`, in the order of names."""
    found = []
    for path in sorted(runs_dir.glob(f"*/{FILE}")):
        with contextlib.suppress(ValueError, TypeError, OSError):
            found.append(Decision(**workspace.read_json(path)))
    return found


def tabulate(runs_dirs: Sequence[Path]) -> Any:
    """Every decision as a row of a table, in the order of names.

    Args:
        runs_dirs: folders of runs.
    Returns:
        step, promoted, rung, minutes (of the rung), over, gain, low, high (differences
        of accuracy), at_least, verdict.
    """
    import pandas as pd

    rows = []
    for folder in runs_dirs:
        for one in read_decisions(folder):
            seconds = report.read_record(folder / one.run).get("seconds") or 0
            told: dict[str, Any] = {"step": one.step, "rung": one.run}
            told |= {"promoted": "yes" if one.promoted else "no", "over": one.over}
            told |= {"minutes": float(seconds) / 60}
            names = ("gain", "low", "high", "at_least", "verdict")
            rows.append(told | {name: getattr(one, name) for name in names})
    columns = ["step", "promoted", "rung", "minutes", "over", "gain", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "at_least", "verdict"])


# --- what each rung cost and said -----------------------------------------------


def list_rungs(gates: dict[str, Gate]) -> list[str]:
    """The names of all rungs from the lowest up.

    Args:
        gates: by the name of the step each holds back, in the plan's order.
    """
    names: list[str] = []
    for step, gate in gates.items():
        names += [n for n in (gate.over, gate.run, step) if n not in names]
    return names


def describe_rungs(gates: dict[str, Gate], runs_dir: Path) -> list[str]:
    """A line for each rung: its time, its score, its gain over the rung before.

    Args:
        gates: as `list_rungs`.
        runs_dir: where the runs are.
    """
    names = list_rungs(gates)
    kept = {one.step: one for one in read_decisions(runs_dir)}
    wide = max(map(len, names)) + 2
    lines = []
    for below, name in zip(["", *names], names, strict=False):
        decision = kept.get(name)
        if name in gates and decision is not None and not decision.promoted:
            lines.append(f"{name:<{wide}}not run, {decision.text}")
            continue
        record = report.read_record(runs_dir / name)
        if folders.read_state(record) != "done":
            lines.append(f"{name:<{wide}}{folders.read_state(record)}")
            continue
        took = display.format_seconds(float(record.get("seconds") or 0))
        score, interval = report.format_score(record)
        told = f"{name:<{wide}}{took:>9}{score:>8}  {interval:<17}"
        lines.append((told + _say_gain(runs_dir, below, name)).rstrip())
    return lines


def _say_gain(runs_dir: Path, below: str, name: str) -> str:
    if not below:
        return ""
    try:
        found = compare_runs(runs_dir, below, name)
    except (ValueError, OSError):
        return f"cannot be compared with {below}"
    return f"over {below}: {describe_gain(found)}"
