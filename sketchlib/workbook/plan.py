"""A chain of notebook runs, made where nothing valid is there yet.

A plan is a YAML file; see `params/workbooks/`:

    title: The whole workbook on the demo drawings
    parameters: {data_dir: data/demo}      # for every notebook that has them
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

Every step's parameters are checked before the first one starts. A step is skipped
when its run is done and its fingerprint is the same: parameters, notebook, library
sources, the CSV files of data_dir (name, size, time), and what it needs. Limits:
pictures changed in place under an unchanged CSV are not noticed.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import display, parameters, report, runner

_PLAN_KEYS: dict[str, type] = {"title": str, "parameters": dict, "steps": list}
_STEP_KEYS: dict[str, type] = {
    "name": str,
    "notebook": str,
    "needs": list,
    "file": str,
    "parameters": dict,
    "budget_share": float,
    "minutes": float,
}
_PLACES = ("runs_dir", "run_name", "data_dir")  # say where, not what
_DEMO_DIR = "data/demo"


@dataclasses.dataclass(frozen=True)
class Step:
    """One run of the plan, its parameters checked; `minutes` expected, 0 unknown."""

    job: runner.Job
    needs: tuple[str, ...] = ()
    minutes: float = 0.0

    @property
    def name(self) -> str:
        """The step's name, which is its run's."""
        return self.job.folder.name


@dataclasses.dataclass(frozen=True)
class Plan:
    """A title and steps in an order in which each comes after what it needs."""

    title: str
    steps: tuple[Step, ...]

    @property
    def runs_dir(self) -> Path:
        """Where the runs are written."""
        return self.steps[0].job.folder.parent


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
) -> Plan:
    """A plan with every step's parameters checked.

    Args:
        path: the YAML file.
        pairs: `-p NAME VALUE`, for every step whose notebook has that parameter.
        runs_dir: from the command line; empty for the plan's or notebooks' own.
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
    _check_needs(steps, path)
    notebooks = [parameters.find_notebook(entry["notebook"]) for entry in steps]
    schemas = [parameters.read_parameters(notebook) for notebook in notebooks]
    asked = _Asked(Path(path), content.get("parameters") or {}, schemas, pairs)
    if runs_dir:
        asked.pairs["runs_dir"] = parameters.absolute(runs_dir)
    return Plan(
        str(content.get("title", Path(path).stem)),
        tuple(
            _make_step(entry, notebook, schema, asked)
            for entry, notebook, schema in zip(steps, notebooks, schemas, strict=True)
        ),
    )


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
        share = {"budget_minutes": asked.budget() * entry["budget_share"]}
        values |= parameters.check_overrides(schema, share, f"budget_share of {where}")
    values["run_name"] = entry["name"]
    job = runner.make_job(notebook, values)
    return Step(job, tuple(entry.get("needs", [])), float(entry.get("minutes", 0)))


def _find_file(file: str, plan: Path) -> Path:
    """A parameter file named in a plan: from the repository, or beside the plan."""
    beside = plan.parent / file
    from_root = workspace.resolve_path(file)
    return from_root if from_root.exists() or not beside.exists() else beside


# --- is it up to date? ------------------------------------------------------


def make_fingerprint(step: Step, upstream: dict[str, str]) -> dict[str, Any]:
    """Everything the step's result depends on, in parts that can be named.

    Args:
        step: the step.
        upstream: for each run it needs, when that finished.
    """
    job = step.job
    return {
        "parameters": {k: v for k, v in job.values.items() if k not in _PLACES},
        "notebook": hash_notebook(job.notebook),
        "code": hash_library(),
        "data": hash_data(job),
        "needs": upstream,
    }


def hash_notebook(path: Path) -> str:
    """Hash of the cells' sources, so that opening it in JupyterLab changes nothing."""
    cells = parameters.read_notebook(path)["cells"]
    return workspace.hash_value([(c["cell_type"], c["source"]) for c in cells])


def hash_library() -> str:
    """Hash of our sources, without this room: a page's look changes no number."""
    root = Path(workspace.__file__).parent
    sources = sorted(root.rglob("*.py"))
    return workspace.hash_files([p for p in sources if p.parent != root / "workbook"])


def hash_data(job: runner.Job) -> str:
    """Hash of name, size and time of the CSV files in the job's data folder."""
    if not job.values.get("data_dir"):
        return ""
    folder = workspace.resolve_path(str(job.values["data_dir"]))
    found = sorted(folder.glob("*.csv")) or sorted(folder.glob("[!.]*"))
    facts = [(path.name, path.stat()) for path in found]
    return workspace.hash_value([(n, s.st_size, s.st_mtime_ns) for n, s in facts])


def explain_run(step: Step, upstream: dict[str, str]) -> str:
    """Why the step must run; empty when its run is done and still valid."""
    folder = step.job.folder
    if not (folder / "run.json").exists():
        return "missing"
    try:
        record = workspace.read_json(folder / "run.json")
    except ValueError:
        return "its run.json cannot be read"
    state = runner.read_state(record)
    if state != "done":
        return f"last time {state}" if state != "running" else "still running"
    stored = record.get("fingerprint")
    if not stored:
        return "not run by a plan before"
    gone = [n for n in record.get("outputs", []) if not (folder / n).exists()]
    if gone:
        return f"{gone[0]} is gone"
    return _compare(stored, make_fingerprint(step, upstream))


def _compare(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """What differs between two fingerprints, the most telling first."""
    before, now = stored.get("parameters", {}), current["parameters"]
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    if names:
        told = ", ".join(f"{n} {before.get(n)} → {now.get(n)}" for n in names[:3])
        return f"parameters changed: {told}" + ", …" * (len(names) > 3)
    for part in ("data", "notebook", "code"):
        if stored.get(part) != current[part]:
            return f"{part} changed"
    for need, finished in current["needs"].items():
        if stored.get("needs", {}).get(need) != finished:
            return f"upstream {need} ran again"
    return "" if stored == current else "what it needs changed"


# --- running ----------------------------------------------------------------


@dataclasses.dataclass
class _Progress:
    """What happened so far; `rate` compares the time taken with the time expected."""

    finished: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    taken: float = 0.0
    expected: float = 0.0

    def blocked(self, step: Step) -> str:
        """The needed step that is not there, if any."""
        return next((need for need in step.needs if need in self.failed), "")

    @property
    def rate(self) -> float:
        """Seconds taken per second expected."""
        return self.taken / self.expected if self.expected else 1.0


def run_plan(plan: Plan, *, forced: Sequence[str] = (), dry: bool = False) -> int:
    """Run what is missing or stale, in order; returns the exit code.

    The first failure decides the exit code; later steps that do not need the failed
    one still run, unless the input was bad or the plan was interrupted.

    Raises:
        ValueError: an unknown step in `forced`.
        FileNotFoundError: the data folder does not exist.
    """
    names = [step.name for step in plan.steps]
    for name in forced:
        if name not in names:
            raise ValueError(
                f"no step is called `{name}` (--force){parameters.suggest(name, names)}"
            )
    _check_data(plan)
    print(f"{plan.title}\n{len(names)} steps → {plan.runs_dir}\n", flush=True)
    if dry:
        _print_forecast(plan, forced)
        return 0
    code = _run_steps(plan, forced)
    _print_end(plan)
    return code


def _check_data(plan: Plan) -> None:
    for step in plan.steps:
        given = str(step.job.values.get("data_dir", ""))
        if not given or workspace.resolve_path(given).is_dir():
            continue
        is_demo = workspace.resolve_path(given) == workspace.repo_root() / _DEMO_DIR
        remedy = "run `sketch demo` first" if is_demo else "give `-p data_dir DIR`"
        raise FileNotFoundError(f"there is no data folder `{given}`; {remedy}")


def _explain(step: Step, progress: _Progress, forced: Sequence[str]) -> str:
    if step.name in forced:
        return "forced"
    return explain_run(step, {need: progress.finished[need] for need in step.needs})


def _print_forecast(plan: Plan, forced: Sequence[str]) -> None:
    progress, rerun = _Progress(), set[str]()
    for step in plan.steps:
        progress.finished[step.name] = _read_finished(step)
        cause = next((need for need in step.needs if need in rerun), "")
        why = _explain(step, progress, forced)
        why = why or f"upstream {cause} runs again" * bool(cause)
        if why:
            rerun.add(step.name)
        print(f"{'run ' if why else 'skip'}  {step.name:<20} {why or 'up to date'}")


def _run_steps(plan: Plan, forced: Sequence[str]) -> int:
    progress, code = _Progress(), 0
    started = time.monotonic()
    for number, step in enumerate(plan.steps, 1):
        head = f"[{number}/{len(plan.steps)}] {step.name}"
        if blocked := progress.blocked(step):
            print(f"{head}: not run, because it needs {blocked}", flush=True)
            progress.failed[step.name] = "not run"
            continue
        why = _explain(step, progress, forced)
        if not why:
            print(f"{head}: up to date", flush=True)
            progress.finished[step.name] = _read_finished(step)
            continue
        left = _estimate_left(plan.steps[number - 1 :], progress, forced)
        elapsed = display.format_seconds(time.monotonic() - started)
        print(f"{head}: {why}  ({elapsed} so far{left})", flush=True)
        outcome = _run_step(step, progress)
        code = code or outcome.exit_code
        if outcome.exit_code in (runner.BAD_INPUT, runner.EXIT_CODES["interrupted"]):
            _print_unreached(plan.steps[number:])
            break
    return code


def _run_step(step: Step, progress: _Progress) -> runner.Outcome:
    upstream = {need: progress.finished[need] for need in step.needs}
    facts = {"fingerprint": make_fingerprint(step, upstream), "needs": list(step.needs)}
    expected = _expect_seconds(step)
    outcome = runner.run_notebook(dataclasses.replace(step.job, facts=facts))
    if outcome.state == "done":
        progress.finished[step.name] = _read_finished(step)
        progress.taken += outcome.seconds * bool(expected)
        progress.expected += expected
    else:
        progress.failed[step.name] = outcome.state
        print(f"{step.name}: {outcome.message}", file=sys.stderr, flush=True)
    return outcome


def _print_unreached(steps: Sequence[Step]) -> None:
    if steps:
        names = ", ".join(step.name for step in steps)
        print(f"not run: {names}; the same command resumes here", flush=True)


def _read_finished(step: Step) -> str:
    """When the step's run ended, to the second, and the hash of what it depended on."""
    path = step.job.folder / "run.json"
    if not path.exists():
        return ""
    try:
        record = workspace.read_json(path)
    except ValueError:
        return ""
    depended = workspace.hash_value(record.get("fingerprint"))
    return f"{record.get('finished', '')} {depended}"


# --- time -------------------------------------------------------------------


def _expect_seconds(step: Step) -> float:
    """What the step took last time, else what the plan says; 0 when unknown."""
    path = step.job.folder / "run.json"
    if path.exists():
        try:
            record = workspace.read_json(path)
        except ValueError:
            record = {}
        if record.get("state") == "done" and record.get("seconds"):
            return float(record["seconds"])
    return step.minutes * 60


def _estimate_left(
    steps: Sequence[Step], progress: _Progress, forced: Sequence[str]
) -> str:
    """`, about 3:10 min left` over the steps that will run, where that is known."""
    stale = list(_list_stale(steps, progress, forced))
    seconds = [_expect_seconds(step) for step in stale]
    if not all(seconds):
        return ""
    return f", about {display.format_seconds(sum(seconds) * progress.rate)} left"


def _list_stale(
    steps: Sequence[Step], progress: _Progress, forced: Sequence[str]
) -> Iterator[Step]:
    rerun: set[str] = set()
    for step in steps:
        known = {need: progress.finished.get(need, "") for need in step.needs}
        if rerun & set(step.needs) or step.name in forced or explain_run(step, known):
            rerun.add(step.name)
            yield step


# --- the end ----------------------------------------------------------------


def _print_end(plan: Plan) -> None:
    """The table of scores and the path of the index."""
    print(f"\n{'run':<22}{'score':>7}  {'95 % interval':<17}{'time':>10}  state")
    for step in plan.steps:
        record = report.read_record(step.job.folder)
        score, interval = report.format_score(record)
        seconds = record.get("seconds")
        took = display.format_seconds(seconds) if seconds is not None else ""
        state = runner.read_state(record)
        print(f"{step.name:<22}{score:>7}  {interval:<17}{took:>10}  {state}")
    submission = plan.runs_dir / "submission.csv"
    if submission.exists():
        print(f"\n{submission}")
    print(f"{report.write_index(plan.runs_dir)}", flush=True)
