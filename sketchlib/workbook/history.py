"""What was tried: run folders, one's own or several people's, as one table.

A run is read from its `run.json`; a gain is counted anew from the `oof.npz` of the
run and of its baseline, on the same pictures and folds, never from two scores side by
side. What cannot be compared is listed with the reason. Limits: an intention nobody
wrote down as `hypothesis` and `baseline` is not guessed; a run that was started again
under its name counts once, as it ended.
"""

import dataclasses
import datetime
import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import decisions
from sketchlib.data import manifest as manifests
from sketchlib.training import predictions
from sketchlib.workbook import display, folders, parameters, report

_OWN = "07_retrospective"
_SCORED = ("03_train", "05_ensemble")
_WORDS = {"run_name", "runs_dir", "data_dir", "hypothesis", "baseline", "fresh"}
_MACHINE = {"precision", "layout", "workers", "budget_minutes", "columns", "tracker"}
_PIXELS = ("side_px", "fit", "channels", "paper")
_NOT_PARENTS = {"baseline", "against", "run_name"}  # compared with, not made from
_SHOWN = ("model", "augment", "side_px", "epochs", "seed")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run folder; its name is `owner/name` where there are several owners."""

    name: str
    owner: str
    folder: Path
    record: dict[str, Any]

    @property
    def notebook(self) -> str:
        """Stem of the notebook it is a run of."""
        record = self.record
        named = record.get("notebook") or record.get("runner", {}).get("notebook")
        return str(named or "")

    @property
    def parameters(self) -> dict[str, Any]:
        """What it was asked."""
        found = self.record.get("parameters")
        return found if isinstance(found, dict) else {}

    @property
    def minutes(self) -> float:
        """What it took; 0 where unknown."""
        return float(self.record.get("seconds") or 0) / 60

    @property
    def started(self) -> float:
        """When it began, seconds since 1970; infinity where unknown, to sort last."""
        stamp = str(self.record.get("started", ""))
        try:
            when = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z")
        except ValueError:
            return float("inf")
        return when.timestamp()


# --- reading ----------------------------------------------------------------


def read_entries(runs_dirs: Sequence[Path]) -> list[Entry]:
    """Every run of the folders, in the order they were started; a copy counts once.

    Raises:
        FileNotFoundError: a folder does not exist.
    """
    owners = name_owners(runs_dirs)
    several = len(runs_dirs) > 1
    found: list[Entry] = []
    for folder, owner in zip(runs_dirs, owners, strict=True):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"`runs_dirs` should name folders of runs, but {folder} does not exist"
            )
        for path, record in report.read_runs(folder):
            name = f"{owner}/{path.name}" if several else path.name
            found.append(Entry(name, owner, path, record))
    once = {_identify(e): e for e in reversed(found) if e.notebook != _OWN}
    return sorted(once.values(), key=lambda e: (e.started, e.name))


def _identify(entry: Entry) -> Any:
    """What two copies of one run share; a run without a start is like no other."""
    record = entry.record
    if not record.get("started"):
        return str(entry.folder)
    facts = {key: record.get(key) for key in ("name", "started", "pid", "parameters")}
    return workspace.hash_value(facts)


def name_owners(runs_dirs: Sequence[Path]) -> list[str]:
    """A short, distinct name for each folder: its own, else with its parent's."""
    plain = [
        path.parent.name if path.name == "runs" else path.name for path in runs_dirs
    ]
    if len(set(plain)) == len(plain):
        return plain
    return [
        f"{path.parent.name}-{path.name}-{n}" for n, path in enumerate(runs_dirs, 1)
    ]


def tabulate(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row per run, in order.

    Returns:
        run, owner, notebook, state, started, minutes, score, low, high (0-1, NaN
        without), hypothesis, baseline, and the telling parameters as text.
    """
    rows = []
    for entry in entries:
        name, value, low, high = report.read_score(entry.record)
        missing = float("nan")
        name = name if entry.notebook in _SCORED else ""  # 04 repeats another's score
        rows.append(
            {
                "run": entry.name,
                "owner": entry.owner,
                "notebook": entry.notebook,
                "state": folders.read_state(entry.record),
                "started": str(entry.record.get("started", "")),
                "minutes": entry.minutes,
                "score": value if name else missing,
                "low": low if name and low is not None else missing,
                "high": high if name and high is not None else missing,
                "hypothesis": str(entry.record.get("hypothesis") or ""),
                "baseline": str(entry.record.get("baseline") or ""),
                **{key: str(entry.parameters.get(key, "")) for key in _SHOWN},
            }
        )
    columns = ["run", "owner", "notebook", "state", "started", "minutes"]
    columns += ["score", "low", "high", "hypothesis", "baseline", *_SHOWN]
    return pd.DataFrame(rows, columns=columns)


# --- gains ------------------------------------------------------------------


def measure_gains(
    entries: Sequence[Entry],
    manifest: pd.DataFrame,
    folds: pd.DataFrame | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Every finished run that names a baseline against it, on the same pictures.

    Args:
        entries: the runs, in order.
        manifest: labels of the pictures.
        folds: `image_id, group`; groups are drawn whole.
        draws: bootstrap draws.
        seed: of the bootstrap.
    Returns:
        run, baseline, hypothesis, gain, low, high (differences of accuracy; NaN where
        they cannot be compared), verdict (`better`, `worse`, `cannot tell yet`, `not
        comparable`), minutes (of an ensemble with its members, the baseline's not
        counted), changed (what differs in the recipes), reason (why the
        comparison is not fair; empty when it is).
    """
    rows = []
    for entry, base in list_comparisons(entries):
        named = base.name if base else str(entry.record["baseline"])
        row = {"run": entry.name, "baseline": named}
        row["hypothesis"] = str(entry.record.get("hypothesis") or "")
        gain = _compare(entry, base, manifest, folds, (draws, seed))
        changed = list_changes(base, entry) if base else []
        reason = gain.pop("reason") or _doubt(changed, entry, base)
        rows.append(
            row
            | gain
            | {"minutes": _count_minutes(entries, entry, base)}
            | {"changed": ", ".join(changed)}
            | {"reason": reason}
        )
    columns = ["run", "baseline", "hypothesis", "gain", "low", "high", "verdict"]
    return pd.DataFrame(rows, columns=[*columns, "minutes", "changed", "reason"])


def list_comparisons(
    entries: Sequence[Entry],
) -> Iterator[tuple[Entry, Entry | None]]:
    """Finished scored runs that name a baseline, with it; None when it is not there.

    An ensemble without one is compared with its best member.
    """
    for entry in entries:
        is_done = folders.read_state(entry.record) == "done"
        if is_done and entry.notebook in _SCORED:
            named = [entry.record.get("baseline") or entry.parameters.get("baseline")]
            bases = [find_entry(entries, str(n), entry.owner) for n in named if n]
            if bases or (bases := _best_member(entries, entry)):
                yield entry, bases[0]


def _count_minutes(entries: Sequence[Entry], entry: Entry, base: Entry | None) -> float:
    """What had to be computed beyond the baseline."""
    names = map(str, entry.record.get("members", []))
    made = [entry, *(find_entry(entries, name, entry.owner) for name in names)]
    once = {one.name: one.minutes for one in made if one and one is not base}
    return sum(once.values())


def _best_member(entries: Sequence[Entry], blend: Entry) -> list[Entry | None]:
    names = map(str, blend.record.get("members", []))
    found = [find_entry(entries, name, blend.owner) for name in names]
    members = [one for one in found if one]
    members.sort(key=lambda one: -report.read_score(one.record)[1])
    return [*members[:1]]


def find_entry(entries: Sequence[Entry], name: str, owner: str) -> Entry | None:
    """The run of that name: the same owner's first, then anyone's."""
    named = [e for e in entries if name in (e.name, e.folder.name)]
    own = [e for e in named if e.owner == owner]
    return next(iter([*own, *named]), None)


def _compare(
    entry: Entry,
    base: Entry | None,
    manifest: pd.DataFrame,
    folds: pd.DataFrame | None,
    bootstrap: tuple[int, int],
) -> dict[str, Any]:
    nothing = dict.fromkeys(("gain", "low", "high"), float("nan"))
    nothing |= {"verdict": "not comparable"}  # type: ignore[dict-item]
    if base is None:
        return nothing | {"reason": "the baseline is not among the runs"}
    try:
        ours, theirs = (
            predictions.read_predictions(e.folder / "oof.npz") for e in (entry, base)
        )
        draws, seed = bootstrap
        found = scores.compare(theirs, ours, manifest, folds, draws=draws, seed=seed)
    except FileNotFoundError as error:
        return nothing | {"reason": f"no out-of-fold file: {error}"}
    except ValueError as error:
        return nothing | {"reason": str(error)}
    return {
        "gain": found.gain,
        "low": found.low,
        "high": found.high,
        "verdict": found.verdict,
        "reason": "",
    }


def list_changes(base: Entry, entry: Entry) -> list[str]:
    """The parameters of the recipe that differ: `augment pen → none`."""
    before, now = base.parameters, entry.parameters
    names = [n for n in {**before, **now} if n not in _WORDS | _MACHINE]
    return [
        f"{name} {_show(before.get(name))} → {_show(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return "–" if value in (None, "") else str(value)


def _doubt(changed: Sequence[str], entry: Entry, base: Entry | None) -> str:
    """Why a gain that can be counted does not speak for one idea."""
    if base is None or entry.notebook != base.notebook:
        return ""
    data = [e.record.get("fingerprint", {}).get("data") for e in (base, entry)]
    if all(data) and data[0] != data[1]:
        return "the data changed between them"
    names = [change.split(" ", 1)[0] for change in changed]
    if not names:
        return "nothing differs but the run's name"
    pixels = [name for name in names if name in _PIXELS]
    if pixels and len(names) > len(pixels):
        return f"different pixels ({', '.join(pixels)}) beside the change"
    return f"{len(names)} things changed at once" if len(names) > 1 else ""


def list_uncompared(entries: Sequence[Entry]) -> pd.DataFrame:
    """Finished training runs that were neither compared nor the baseline of others.

    Returns:
        run, minutes, score, nearest (the earlier run with the fewest differences),
        changed (those differences).
    """
    named = {base.name for _, base in list_comparisons(entries) if base}
    named |= {entry.name for entry, _ in list_comparisons(entries)}
    trained = [
        e
        for e in entries
        if e.notebook == "03_train" and folders.read_state(e.record) == "done"
    ]
    rows = []
    for place, entry in enumerate(trained):
        if entry.name in named:
            continue
        earlier = [(len(list_changes(e, entry)), e) for e in trained[:place]]
        nearest = min(earlier, key=lambda pair: pair[0])[1] if earlier else None
        name, value, _, _ = report.read_score(entry.record)
        rows.append(
            {
                "run": entry.name,
                "minutes": entry.minutes,
                "score": value if name else float("nan"),
                "nearest": nearest.name if nearest else "",
                "changed": ", ".join(list_changes(nearest, entry)) if nearest else "",
            }
        )
    return pd.DataFrame(rows, columns=["run", "minutes", "score", "nearest", "changed"])


# --- cost, parents, decisions -----------------------------------------------


def count_cost(table: pd.DataFrame, gains: pd.DataFrame) -> pd.DataFrame:
    """Where the minutes went, by what came of them.

    Args:
        table: `tabulate`.
        gains: `measure_gains`.
    Returns:
        outcome, runs, minutes, points (accuracy gained, summed, in points), and
        minutes_per_point (NaN where nothing was gained).
    """
    verdicts = gains.set_index("run")["verdict"]
    rows = table.assign(outcome=table["run"].map(verdicts))
    ended = ~rows["state"].isin(["done", "running", "queued"])
    is_scored = rows["notebook"].isin(_SCORED)
    rows.loc[is_scored & rows["outcome"].isna(), "outcome"] = "without a baseline"
    rows.loc[~is_scored, "outcome"] = "looking and preparing"
    rows.loc[ended, "outcome"] = "ended early"
    rows["points"] = 100 * rows["run"].map(gains.set_index("run")["gain"])
    grouped = rows.groupby("outcome")
    result = grouped.agg(runs=("run", "size"), minutes=("minutes", "sum"))
    result["points"] = grouped["points"].sum()
    price = gains.groupby("verdict")["minutes"].sum() / result["points"]
    result["minutes_per_point"] = price.where(price.index == "better")
    return result.sort_values("minutes", ascending=False).reset_index()


def find_final(entries: Sequence[Entry], name: str = "") -> Entry:
    """The run of that name; without one the last ensemble, else the best trained run.

    Raises:
        ValueError: there is no such run, or no finished one at all.
    """
    done = [e for e in entries if folders.read_state(e.record) == "done"]
    chosen = [e for e in done if name in (e.name, e.folder.name)]
    if name and not chosen:
        near = parameters.suggest(name, [e.name for e in done])
        raise ValueError(
            f"`final` should be a finished run, but none is `{name}`{near}"
        )
    blends = [e for e in done if e.notebook == "05_ensemble"]
    trained = [e for e in done if e.notebook == "03_train"]
    trained.sort(key=lambda e: report.read_score(e.record)[1])
    found = [*trained, *blends, *chosen]
    if not found:
        raise ValueError(
            "at least one finished run of 03_train was expected, but there is none; "
            "run it first, or name the folders of runs as `runs_dirs`"
        )
    return found[-1]


def find_folds(entries: Sequence[Entry], manifest: pd.DataFrame) -> pd.DataFrame | None:
    """The folds of the first audit that has every picture; None without one."""
    wanted = set(manifests.train_rows(manifest)["image_id"])
    for entry in entries:
        path = entry.folder / "folds.csv"
        if entry.notebook == "01_eda" and path.is_file():
            folds = pd.read_csv(path, dtype={"image_id": str})
            if wanted <= set(folds["image_id"]):
                return folds
    return None


def find_decisions(entries: Sequence[Entry], data_dir: Path) -> list[Path]:
    """Where verdicts on the drawings may be: beside the data, and copies in runs."""
    beside = decisions.find_path(data_dir)
    return [beside, *(entry.folder / "decisions.csv" for entry in entries)]


def trace_parents(entries: Sequence[Entry], final: Entry) -> pd.DataFrame:
    """What the final run was made from, parents first named by its parameters.

    A parent is a run that a parameter of the child names: members, a teacher, the
    audit whose folds were used.

    Returns:
        child, parent, role (the parameter), weight (of ensemble members, else NaN),
        depth (generations from the final run, by the longest way), model, score. A
        parent is listed once for each child.
    """
    rows: list[dict[str, Any]] = []
    waiting, seen = [final], {final.name}
    while waiting:
        child = waiting.pop(0)
        weights = child.record.get("weights")
        weights = weights if isinstance(weights, Mapping) else {}
        for role, named in _list_named(child):
            parent = find_entry(entries, named, child.owner)
            if parent is None or parent.name == child.name:
                continue
            name, value, _, _ = report.read_score(parent.record)
            rows.append(
                {
                    "child": child.name,
                    "parent": parent.name,
                    "role": role,
                    "weight": float(weights.get(named, "nan")),
                    "model": str(parent.parameters.get("model", parent.notebook)),
                    "score": value if name else float("nan"),
                }
            )
            if parent.name not in seen:
                seen.add(parent.name)
                waiting.append(parent)
    depths = _count_depths([(row["child"], row["parent"]) for row in rows], final.name)
    for row in rows:
        row["depth"] = depths[row["parent"]]
    columns = ["child", "parent", "role", "weight", "depth", "model", "score"]
    return pd.DataFrame(rows, columns=columns)


def _count_depths(edges: Sequence[tuple[str, str]], final: str) -> dict[str, int]:
    """Generations from the final run, by the longest way; a cycle ends somewhere."""
    depths = {final: 0}
    for _ in range(len(edges)):
        before = dict(depths)
        for child, parent in edges:
            if child in depths and parent != final:
                depths[parent] = max(depths.get(parent, 0), depths[child] + 1)
        if depths == before:
            break
    return depths


def _list_named(child: Entry) -> Iterator[tuple[str, str]]:
    """(parameter, text) for every text among the child's parameters, members too."""
    yield from (("member", str(name)) for name in child.record.get("members", []))
    members = set(map(str, child.record.get("members", [])))
    for role, value in child.parameters.items():
        if role in _NOT_PARENTS | _WORDS:
            continue
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text and text not in members:
                yield role, text


def read_decisions(paths: Sequence[Path]) -> pd.DataFrame:
    """The words of people on pictures: id, action, old, new, by, when; each once.

    Files that are not there are left out; several copies of one file count once.
    """
    columns = ["id", "action", "old", "new", "by", "when"]
    found = [
        pd.read_csv(path, dtype=str, keep_default_na=False, on_bad_lines="skip")
        for path in paths
        if path.is_file() and path.stat().st_size
    ]
    if not found:
        return pd.DataFrame(columns=columns)
    both = pd.concat(found, ignore_index=True).reindex(columns=columns, fill_value="")
    return both.drop_duplicates(ignore_index=True).sort_values("when", kind="stable")


# --- in words ---------------------------------------------------------------


def describe_way(
    table: pd.DataFrame, gains: pd.DataFrame, uncompared: pd.DataFrame
) -> str:
    """What the log says, in a few sentences of Markdown.

    Args:
        table: `tabulate`.
        gains: `measure_gains`.
        uncompared: `list_uncompared`.
    """
    scored = table[table["score"].notna()]
    first, best = scored.iloc[0], scored.loc[scored["score"].idxmax()]
    counts = gains["verdict"].value_counts()
    unfair = int((gains["reason"] != "").sum())
    took = display.format_seconds(60 * table["minutes"].sum())
    owners = table["owner"].nunique()
    people = f" of {owners} people" * (owners > 1)
    return (
        f"**{len(table)} runs**{people}, {took} of computing. The score went from "
        f"{first['score']:.3f} (*{_escape(first['run'])}*) to {best['score']:.3f} "
        f"(*{_escape(best['run'])}*). Of {len(gains)} ideas that named a baseline, "
        f"{counts.get('better', 0)} helped, {counts.get('worse', 0)} did harm, "
        f"{counts.get('cannot tell yet', 0)} cannot be told from nothing, and "
        f"{counts.get('not comparable', 0)} cannot be compared. {unfair} comparisons "
        f"are not fair to one idea; {len(uncompared)} finished runs were never "
        "compared."
    )


def describe_cost(cost: pd.DataFrame, gains: pd.DataFrame) -> str:
    """What a point of accuracy cost, in Markdown.

    Args:
        cost: `count_cost`.
        gains: `measure_gains`.
    """
    paid = cost[cost["minutes_per_point"].notna()]
    if paid.empty:
        return "No idea has shown a gain yet, so no point of accuracy has a price."
    helped = gains[gains["verdict"] == "better"].copy()
    helped["price"] = helped["minutes"] / (100 * helped["gain"])
    cheap = helped.loc[helped["price"].idxmin()]
    spent = gains["minutes"].sum()
    points = paid["points"].sum()
    return (
        f"Ideas that helped brought {points:.1f} points at "
        f"{paid['minutes_per_point'].iloc[0]:.1f} minutes a point; with those that did "
        f"not, {spent / points:.1f}. The cheapest was *{_escape(cheap['run'])}*: "
        f"{100 * cheap['gain']:+.1f} points for {cheap['minutes']:.1f} minutes."
    )


def _escape(name: Any) -> str:
    return html.escape(str(name)).replace("*", r"\*").replace("_", r"\_")
