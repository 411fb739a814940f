"""A chain of notebook runs, made where nothing valid is there yet.

A plan is a YAML file; see `params/workbooks/`:

    title: The whole workbook on the demo drawings
    parameters: {data_dir: data/demo}      # for every notebook that has them
    jobs: 2                                # steps at a time, unless --jobs says so
    steps:
      - name: audit                        # the step's run_name
        notebook: 01_eda
      - name: lite0
        notebook: 03_train
        needs: [audit]                     # earlier steps
        file: params/03_train/demo.yaml    # overrides, below `parameters` of the step
        parameters: {model: tf_efficientnet_lite0}
        budget_share: 0.4                  # of the plan's budget_minutes
        minutes: 3                         # expected, for the time left
        cpus: 2                            # what it needs of a Ray node; default 1
        gpus: 1                            # default 0
      - name: trial                        # eight steps, trial-lite0-pen-0 and so on
        notebook: 03_train
        grid: {model: [lite0, lite1], augment: [pen, none], seed: [0, 1]}
      - name: big                          # only if lite0 gained over the probe
        notebook: 03_train
        promote: {run: lite0, over: probe, at_least: 0.0}
      - name: story
        notebook: 07_retrospective
        after: [big]                       # when it has ended, or was not promoted

A grid's name stands for all its steps, in `needs` and in lists of parameters. Every
step's parameters are checked before the first one starts; `freshness` decides what
runs, `schedule` runs it.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import jobs, ladder, parameters

_PLAN_KEYS: dict[str, type] = {
    "title": str,
    "parameters": dict,
    "jobs": int,
    "steps": list,
}
_STEP_KEYS: dict[str, type] = {
    "name": str,
    "notebook": str,
    "needs": list,
    "file": str,
    "parameters": dict,
    "budget_share": float,
    "minutes": float,
    "grid": dict,
    "cpus": float,
    "gpus": float,
    "promote": dict,
    "after": list,
}
_MOST_STEPS = 1000  # of one grid: more is a slip of the pen


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of the plan, its parameters checked.

    `minutes` are expected, 0 unknown; `cpus` and `gpus` what it needs of a Ray node.
    `after` are steps it waits for, whether they run or not; `gate` may hold it back.
    """

    job: jobs.Job
    needs: tuple[str, ...] = ()
    minutes: float = 0.0
    cpus: float = 1.0
    gpus: float = 0.0
    after: tuple[str, ...] = ()
    gate: ladder.Gate | None = None

    @property
    def name(self) -> str:
        """The step's name, which is its run's."""
        return self.job.folder.name


@dataclasses.dataclass(frozen=True)
class Plan:
    """A title and steps in an order in which each comes after what it needs.

    `jobs` is how many independent steps run at a time.
    """

    title: str
    steps: tuple[Step, ...]
    jobs: int = 1

    @property
    def runs_dir(self) -> Path:
        """Where the runs are written."""
        return self.steps[0].job.folder.parent

    @property
    def gates(self) -> dict[str, ladder.Gate]:
        """What holds steps back, by their names."""
        return {step.name: step.gate for step in self.steps if step.gate}

    def count_beside(self) -> dict[str, int]:
        """How many steps, itself included, neither need each step nor are needed."""
        before: dict[str, set[str]] = {}
        for step in self.steps:
            direct = {*step.needs, *step.after}
            before[step.name] = direct.union(*(before[name] for name in direct))
        return {
            name: sum(
                name not in before[other] and other not in needed for other in before
            )
            for name, needed in before.items()
        }


# --- reading ----------------------------------------------------------------


def find_plan(given: str) -> Path:
    """The plan meant by a path or by a bare name in `params/workbooks`.

    Raises:
        FileNotFoundError: there is none, with the nearest name.
    """
    folder = workspace.repo_root() / "params" / "workbooks"
    in_folder = folder / f"{given.removesuffix('.yaml')}.yaml"
    for path in (Path(given), workspace.resolve_path(given), in_folder):
        if path.is_file():
            return path
    known = [path.stem for path in sorted(folder.glob("*.yaml"))]
    raise FileNotFoundError(
        f"no plan `{given}` here or in {folder}{parameters.suggest(given, known)}; "
        f"there are: {', '.join(known) or 'none'}"
    )


def read_plan(
    path: str | os.PathLike[str],
    pairs: Sequence[Sequence[str]] = (),
    runs_dir: str = "",
    jobs: int | None = None,
) -> Plan:
    """A plan with every step's parameters checked.

    Args:
        path: the YAML file.
        pairs: `-p NAME VALUE`, for every step whose notebook has that parameter.
        runs_dir: from the command line; empty for the plan's or notebooks' own.
        jobs: steps at a time; None for the plan's own. Fewer than those shrink what
            `budget_share` gives, so that the plan still ends in time.
    Raises:
        ValueError, FileNotFoundError: anything wrong in the plan, a notebook, a
            parameter file or a value, before any work.
    """
    content = parameters.read_yaml(path)
    _check_keys(content, _PLAN_KEYS, f"the plan `{path}`")
    steps = content.get("steps") or []
    if not steps:
        raise ValueError(f"the plan `{path}` should have a list `steps`, but has none")
    for entry in steps:
        _check_entry(entry, path)
    steps = _expand_grids(steps, path)
    _check_needs(steps, path)
    notebooks = [parameters.find_notebook(entry["notebook"]) for entry in steps]
    schemas = [parameters.read_parameters(notebook) for notebook in notebooks]
    wanted = _read_jobs(content, path)
    asked = _Asked(Path(path), content.get("parameters") or {}, schemas, pairs)
    asked.part = min(1.0, (jobs or wanted) / wanted)
    if runs_dir:
        asked.pairs["runs_dir"] = parameters.absolute(runs_dir)
    return Plan(
        str(content.get("title", Path(path).stem)),
        tuple(
            _make_step(entry, notebook, schema, asked)
            for entry, notebook, schema in zip(steps, notebooks, schemas, strict=True)
        ),
        jobs or wanted,
    )


def _read_jobs(content: dict[str, Any], path: str | os.PathLike[str]) -> int:
    jobs = int(content.get("jobs", 1))
    if jobs < 1:
        raise ValueError(f"`jobs` in the plan `{path}` must be at least 1, not {jobs}")
    return jobs


class _Asked:
    """What the plan and the command line ask of every step that can take it."""

    def __init__(
        self,
        path: Path,
        shared: dict[str, Any],
        schemas: Sequence[parameters.Schema],
        pairs: Sequence[Sequence[str]],
    ) -> None:
        everything = {
            name: known for schema in schemas for name, known in schema.items()
        }
        for name in shared:
            parameters.check_known(name, everything, f"`parameters` of `{path}`")
        for name, _ in pairs:
            parameters.check_known(name, everything, parameters.COMMAND_LINE)
        self.path, self.shared = path, shared
        self.part = 1.0  # of its share of the time that a step gets
        self.pairs: dict[str, Any] = dict(parameters.resolve_given(everything, pairs))
        if "run_name" in self.pairs:
            raise ValueError(
                "`run_name` cannot be given for a whole plan, since each step is named "
                "by the plan; choose another place with `--runs DIR`"
            )

    def budget(self) -> float:
        """The plan's budget_minutes, the command line's before the file's."""
        raw = self.pairs.get("budget_minutes", self.shared.get("budget_minutes", 0))
        known = parameters.Parameter("budget_minutes", "float", 0.0)
        given = "budget_minutes" in self.pairs
        where = parameters.COMMAND_LINE if given else str(self.path)
        return float(parameters.coerce(known, raw, where))  # type: ignore[arg-type]


def _check_keys(content: dict[Any, Any], allowed: dict[str, type], where: str) -> None:
    for key, value in content.items():
        if key not in allowed:
            near = parameters.suggest(str(key), allowed)
            raise ValueError(
                f"{where} has no setting `{key}`{near}; there are: {', '.join(allowed)}"
            )
        kind = allowed[key]
        is_number = kind is float and type(value) in (int, float)
        if not is_number and not isinstance(value, kind):
            raise ValueError(
                f"`{key}` in {where} must be a {kind.__name__}, but {value!r} came"
            )


def _check_entry(entry: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(entry, dict) or not {"name", "notebook"} <= set(entry):
        raise ValueError(
            f"every step of `{path}` needs `name` and `notebook`, but one is {entry!r}"
        )
    _check_keys(entry, _STEP_KEYS, f"step `{entry['name']}` of `{path}`")


def _check_needs(steps: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Names are unique, and a step needs only steps that come before it."""
    seen: list[str] = []
    for entry in steps:
        if entry["name"] in seen:
            raise ValueError(f"two steps of `{path}` are called `{entry['name']}`")
        for need in entry.get("needs", []):
            if need not in seen:
                raise ValueError(
                    f"step `{entry['name']}` of `{path}` needs `{need}`, but no step "
                    f"before it has that name{parameters.suggest(str(need), seen)}"
                )
        for name in entry.get("after", []):
            if name not in seen:
                raise ValueError(
                    f"step `{entry['name']}` of `{path}` comes after `{name}`, but no "
                    f"step before it has that name{parameters.suggest(str(name), seen)}"
                )
        ladder.read_gate(entry, seen, f"step `{entry['name']}` of `{path}`")
        seen.append(entry["name"])


def _make_step(
    entry: dict[str, Any], notebook: Path, schema: parameters.Schema, asked: _Asked
) -> Step:
    """The step's job; what is nearer to the step wins, the command line over all."""
    where = f"step `{entry['name']}` of `{asked.path}`"
    shared = {name: value for name, value in asked.shared.items() if name in schema}
    values = parameters.check_overrides(schema, shared, str(asked.path))
    if entry.get("file"):
        file = _find_file(entry["file"], asked.path)
        given = parameters.read_overrides(file)
        values |= parameters.check_overrides(schema, given, entry["file"])
    values |= parameters.check_overrides(schema, entry.get("parameters", {}), where)
    pairs = {name: value for name, value in asked.pairs.items() if name in schema}
    values |= parameters.check_overrides(schema, pairs, parameters.COMMAND_LINE)
    if entry.get("budget_share"):
        share = {"budget_minutes": asked.budget() * entry["budget_share"] * asked.part}
        values |= parameters.check_overrides(schema, share, f"budget_share of {where}")
    values["run_name"] = entry["name"]
    job = jobs.make_job(notebook, values)
    gate = ladder.read_gate(entry, [*_named(entry)], where)
    compared = (gate.over, gate.run) if gate else ()
    needs = tuple(dict.fromkeys([*entry.get("needs", []), *compared]))
    return Step(
        job,
        needs,
        minutes=float(entry.get("minutes", 0)),
        cpus=float(entry.get("cpus", 1)),
        gpus=float(entry.get("gpus", 0)),
        after=tuple(entry.get("after", [])),
        gate=gate,
    )


def _named(entry: dict[str, Any]) -> list[str]:
    """The steps that an entry names, all of them checked before."""
    asked = entry.get("promote") or {}
    return [*entry.get("needs", []), *map(str, (asked.get("run"), asked.get("over")))]


def _find_file(file: str, plan: Path) -> Path:
    """A parameter file named in a plan: from the repository, or beside the plan."""
    beside = plan.parent / file
    from_root = workspace.resolve_path(file)
    return from_root if from_root.exists() or not beside.exists() else beside


# --- grids ------------------------------------------------------------------


def _expand_grids(
    entries: Sequence[dict[str, Any]], path: str | os.PathLike[str]
) -> list[dict[str, Any]]:
    """One step for every combination of a grid; its name stands for all of them."""
    made: list[dict[str, Any]] = []
    grids: dict[str, list[str]] = {}
    for entry in entries:
        entry = _name_members(entry, grids)
        if "grid" not in entry:
            made.append(entry)
            continue
        members = _make_members(entry, f"step `{entry['name']}` of `{path}`")
        grids[entry["name"]] = [member["name"] for member in members]
        made += members
    return made


def _name_members(entry: dict[str, Any], grids: dict[str, list[str]]) -> dict[str, Any]:
    """The entry with every grid's name replaced by the names of its steps."""

    def spread(values: list[Any]) -> list[Any]:
        return [name for value in values for name in _members(value, grids)]

    entry = dict(entry)
    for key in ("needs", "after"):
        if key in entry:
            entry[key] = spread(entry[key])
    entry["parameters"] = {
        name: spread(value) if isinstance(value, list) else value
        for name, value in entry.get("parameters", {}).items()
    }
    return entry


def _members(value: Any, grids: dict[str, list[str]]) -> list[Any]:
    return list(grids[value]) if isinstance(value, str) and value in grids else [value]


def _make_members(entry: dict[str, Any], where: str) -> list[dict[str, Any]]:
    axes = entry["grid"]
    for name, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ValueError(
                f"`{name}` in the grid of {where} must be a list of values to try, but "
                f"{values!r} came"
            )
        if name in entry["parameters"]:
            raise ValueError(f"`{name}` stands in the grid and beside it in {where}")
    combinations = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    if len(combinations) > _MOST_STEPS:
        raise ValueError(
            f"the grid of {where} has {len(combinations):,} steps, more than "
            f"{_MOST_STEPS:,}; leave out values"
        )
    shared = {key: value for key, value in entry.items() if key != "grid"}
    return [
        shared
        | {
            "name": "-".join([entry["name"], *map(_as_word, chosen.values())]),
            "parameters": entry["parameters"] | chosen,
        }
        for chosen in combinations
    ]


def _as_word(value: Any) -> str:
    """A value as a part of a folder's name."""
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+]+", "_", text).strip("_") or "none"
