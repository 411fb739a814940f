"""Running a plan: what is missing or stale, in order, side by side where it may.

One loop starts every step whose needs are met while there is room, and settles those
that ended. Where steps run is a *place*: threads on this machine (`Here`, each step
a process tree of its own, processor threads shared out), or a Ray cluster
(`cluster.Cluster`). Limits: what runs side by side here shares the memory too.
"""

import concurrent.futures
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from sketchlib import workspace
from sketchlib.workbook import (
    display,
    folders,
    freshness,
    ladder,
    parameters,
    report,
    runner,
)
from sketchlib.workbook.jobs import Job
from sketchlib.workbook.outcomes import BAD_INPUT, EXIT_CODES, Outcome
from sketchlib.workbook.plan import Plan, Step

_DEMO_DIR = "data/demo"
_LOOK = 0.5  # seconds between two looks at what ended
_LAST = (BAD_INPUT, EXIT_CODES["interrupted"])  # nothing starts after


class Place(Protocol):
    """Where steps run."""

    def has_room(self, running: int) -> bool:
        """Whether one more may start beside those that run."""

    def start(self, step: Step, job: Job) -> None:
        """Start the step's job and return at once."""

    def wait(self, seconds: float) -> list[tuple[Step, Outcome]]:
        """The steps that ended, after at most so many seconds."""

    def stop(self) -> None:
        """Interrupt what runs; its outcomes still come."""


class Here:
    """This machine: up to `jobs` runs at a time, each with its share of the cores.

    `beside` says how many steps of the plan may run at the time of each, itself
    included; one that runs alone has all cores.
    """

    def __init__(self, jobs: int, beside: Mapping[str, int]) -> None:
        self.jobs = jobs
        self.beside = beside
        self.stopper = runner.Stopper()
        self._pool = concurrent.futures.ThreadPoolExecutor(jobs)
        self._running: dict[concurrent.futures.Future[Outcome], Step] = {}

    def has_room(self, running: int) -> bool:
        """Whether fewer than `jobs` run."""
        return running < self.jobs

    def start(self, step: Step, job: Job) -> None:
        """Run the job in a thread, which watches the run's processes."""
        shared = min(self.jobs, self.beside[step.name])
        threads = max(1, _count_cores() // shared) if shared > 1 else 0
        job = dataclasses.replace(job, threads=threads)
        made = self._pool.submit(run_job, job, self.stopper)
        self._running[made] = step

    def wait(self, seconds: float) -> list[tuple[Step, Outcome]]:
        """The steps that ended."""
        first = concurrent.futures.FIRST_COMPLETED
        ended, _ = concurrent.futures.wait(self._running, seconds, first)
        return [(self._running.pop(one), one.result()) for one in ended]

    def stop(self) -> None:
        """Ask every run to save and end; asked again, end it."""
        self.stopper()


def run_job(job: Job, stopper: runner.Stopper | None = None) -> Outcome:
    """`runner.run_notebook`, what it raises as an outcome: others run beside it."""
    try:
        return runner.run_notebook(job, None, stopper)
    except (ValueError, OSError) as error:
        code = BAD_INPUT if isinstance(error, ValueError) else 1
        told = {"cell": "", "name": type(error).__name__, "message": str(error)}
        return Outcome("failed", code, job.folder, 0.0, told)


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- the whole plan ---------------------------------------------------------


@dataclasses.dataclass
class _Progress:
    """What happened so far; `rate` compares the time taken with the time expected."""

    finished: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    expected: dict[str, float] = dataclasses.field(default_factory=dict)
    taken: float = 0.0
    planned: float = 0.0
    code: int = 0

    def blocked(self, step: Step) -> str:
        """The needed step that is not there, if any."""
        gone = (self.failed, self.skipped)
        return next((n for one in gone for n in step.needs if n in one), "")

    def is_ready(self, step: Step) -> bool:
        """Whether everything it waits for has ended, well or not."""
        ended = {*self.finished, *self.failed, *self.skipped}
        return bool(self.blocked(step)) or (
            set(step.needs) <= set(self.finished) and set(step.after) <= ended
        )

    def upstream(self, step: Step) -> dict[str, str]:
        """When the runs that its result depends on ended."""
        named = [*step.needs, *(name for name in step.after if name in self.finished)]
        return {name: self.finished[name] for name in dict.fromkeys(named)}

    @property
    def rate(self) -> float:
        """Seconds taken per second expected."""
        return self.taken / self.planned if self.planned else 1.0


def run_plan(plan: Plan, place: Place, *, forced: Sequence[str] = ()) -> int:
    """Run what is missing or stale; returns the exit code.

    The first failure decides the exit code; later steps that do not need the failed
    one still run, unless the input was bad or the plan was interrupted.

    Raises:
        ValueError: an unknown step in `forced`, or a run folder that is held.
        FileNotFoundError: the data folder does not exist.
    """
    check_plan(plan, forced)
    _print_title(plan)
    code = _Scheduler(plan, place, forced).run()
    _print_end(plan)
    return code


def forecast(plan: Plan, *, forced: Sequence[str] = ()) -> None:
    """Print what would run, why, and how long that may take.

    Raises:
        ValueError, FileNotFoundError: as `run_plan`.
    """
    check_plan(plan, forced)
    _print_title(plan)
    progress, rerun = _Progress(), set[str]()
    for step in plan.steps:
        told = _foresee(step, progress, rerun, forced)
        print(f"{'run ' if step.name in rerun else 'skip'}  {step.name:<20} {told}")
    print(f"\n{len(rerun)} to run{_estimate_left(plan.steps, _Progress(), forced)}")


def _foresee(
    step: Step, progress: _Progress, rerun: set[str], forced: Sequence[str]
) -> str:
    """Why the step would run or not, as far as it is known; updates the others."""
    if held := progress.blocked(step):
        progress.skipped[step.name] = "not run"
        return f"needs {held}, which is not promoted"
    cause = next((name for name in step.needs if name in rerun), "")
    known = "" if cause or step.name in forced else _foresee_gate(step)
    if known.startswith("not promoted"):
        progress.skipped[step.name] = known
        return known
    progress.finished[step.name] = freshness.read_finished(step)
    why = _explain(step, progress, forced)
    why = why or f"upstream {cause} runs again" * bool(cause)
    if not why:
        return "up to date"
    rerun.add(step.name)
    waits = step.gate and cause
    return f"{why}, if {step.gate.run} is promoted" if waits and step.gate else why


def _foresee_gate(step: Step) -> str:
    """The decision on a step whose rungs are there; empty without a gate."""
    if step.gate is None:
        return ""
    try:
        return ladder.decide(step.name, step.gate, step.job.folder.parent).text
    except (ValueError, OSError) as error:
        return str(error)


def check_plan(plan: Plan, forced: Sequence[str]) -> None:
    """Raise unless the forced steps are the plan's and the data is there."""
    names = [step.name for step in plan.steps]
    for name in forced:
        if name not in names:
            raise ValueError(
                f"no step is called `{name}` (--force){parameters.suggest(name, names)}"
            )
    for step in plan.steps:
        given = str(step.job.values.get("data_dir", ""))
        if not given or workspace.resolve_path(given).is_dir():
            continue
        is_demo = workspace.resolve_path(given) == workspace.repo_root() / _DEMO_DIR
        remedy = "run `sketch demo` first" if is_demo else "give `-p data_dir DIR`"
        raise FileNotFoundError(f"there is no data folder `{given}`; {remedy}")


def _print_title(plan: Plan) -> None:
    print(f"{plan.title}\n{len(plan.steps)} steps → {plan.runs_dir}\n", flush=True)


def _explain(step: Step, progress: _Progress, forced: Sequence[str]) -> str:
    if step.name in forced:
        return "forced"
    return freshness.explain_run(step, progress.upstream(step))


class _Scheduler:
    """Steps that wait, steps that run, and what came of the others."""

    def __init__(self, plan: Plan, place: Place, forced: Sequence[str]) -> None:
        self.steps, self.place, self.forced = plan.steps, place, forced
        self.waiting, self.running = list(plan.steps), list[Step]()
        self.progress = _Progress()
        self.started = time.monotonic()

    def run(self) -> int:
        """Start and settle until nothing is left; the first failure's exit code."""
        stopper = runner.Stopper()
        with runner.signals_caught(stopper):
            heard = 0
            try:
                while self.running or self.waiting:
                    self._fill()
                    for step, outcome in self.place.wait(_LOOK) if self.running else ():
                        self._settle(step, outcome)
                    while heard < stopper.asked:
                        heard += 1
                        self._stop()
            except BaseException:
                self._drain()
                raise
        return self.progress.code

    def _fill(self) -> None:
        """Settle what is up to date or blocked, and start what there is room for."""
        for step in list(self.waiting):
            if not self.place.has_room(len(self.running)):
                return
            if self.progress.is_ready(step):
                self.waiting.remove(step)
                self._begin(step)

    def _begin(self, step: Step) -> None:
        number = self.steps.index(step) + 1
        head = f"[{number}/{len(self.steps)}] {step.name}"
        if blocked := self.progress.blocked(step):
            print(f"{head}: not run, because it needs {blocked}", flush=True)
            held = blocked in self.progress.skipped
            gone = self.progress.skipped if held else self.progress.failed
            gone[step.name] = "not run"
            return
        if step.gate and not self._pass_gate(step, step.gate, head):
            return
        why = _explain(step, self.progress, self.forced)
        if not why:
            print(f"{head}: up to date", flush=True)
            self.progress.finished[step.name] = freshness.read_finished(step)
            return
        self.progress.expected[step.name] = expect_seconds(step)
        left = _estimate_left([step, *self.waiting], self.progress, self.forced)
        elapsed = display.format_seconds(time.monotonic() - self.started)
        print(f"{head}: {why}  ({elapsed} so far{left})", flush=True)
        upstream = self.progress.upstream(step)
        facts = {
            "fingerprint": freshness.make_fingerprint(step, upstream),
            "needs": list(step.needs),
        }
        self.place.start(step, dataclasses.replace(step.job, facts=facts))
        self.running.append(step)

    def _pass_gate(self, step: Step, gate: ladder.Gate, head: str) -> bool:
        """Whether the rung below was worth it; said, and kept beside the run."""
        runs_dir = step.job.folder.parent
        try:
            decision = ladder.decide(step.name, gate, runs_dir)
        except (ValueError, OSError) as error:
            print(f"{head}: not run, {error}", file=sys.stderr, flush=True)
            self.progress.failed[step.name] = "not comparable"
            self.progress.code = self.progress.code or 1
            return False
        ladder.keep(decision, runs_dir)
        if decision.promoted or step.name in self.forced:
            print(f"{head}: {decision.text}", flush=True)
            return True
        print(f"{head}: not run, {decision.text}", flush=True)
        self.progress.skipped[step.name] = decision.text
        return False

    def _settle(self, step: Step, outcome: Outcome) -> None:
        self.running.remove(step)
        if outcome.state == "done":
            expected = self.progress.expected[step.name]
            self.progress.finished[step.name] = freshness.read_finished(step)
            self.progress.taken += outcome.seconds * bool(expected)
            self.progress.planned += expected
            return
        self.progress.failed[step.name] = outcome.state
        print(f"{step.name}: {outcome.message}", file=sys.stderr, flush=True)
        self.progress.code = self.progress.code or outcome.exit_code
        if outcome.exit_code in _LAST:
            self._give_up()

    def _stop(self) -> None:
        self.place.stop()
        self.progress.code = self.progress.code or EXIT_CODES["interrupted"]
        self._give_up()

    def _give_up(self) -> None:
        """Start nothing more; what runs ends by itself."""
        if self.waiting:
            names = ", ".join(step.name for step in self.waiting)
            print(f"not run: {names}; the same command resumes here", flush=True)
        self.waiting.clear()

    def _drain(self) -> None:
        """Something broke: leave no run behind."""
        self.place.stop()
        patience = time.monotonic() + 30
        while self.running and time.monotonic() < patience:
            for step, _ in self.place.wait(_LOOK):
                self.running.remove(step)


# --- time -------------------------------------------------------------------


def expect_seconds(step: Step) -> float:
    """What the step took last time, else what the plan says; 0 when unknown."""
    record = report.read_record(step.job.folder)
    if record.get("state") == "done" and record.get("seconds"):
        return float(record["seconds"])
    return step.minutes * 60


def _estimate_left(
    steps: Sequence[Step], progress: _Progress, forced: Sequence[str]
) -> str:
    """`, about 3:10 min left` over the steps that will run, where that is known."""
    stale = list(_list_stale(steps, progress, forced))
    seconds = [expect_seconds(step) for step in stale]
    if not stale or not all(seconds):
        return ""
    return f", about {display.format_seconds(sum(seconds) * progress.rate)} left"


def list_stale(plan: Plan) -> list[Step]:
    """The steps that would run now."""
    return list(_list_stale(plan.steps, _Progress(), ()))


def _list_stale(
    steps: Sequence[Step], progress: _Progress, forced: Sequence[str]
) -> Iterator[Step]:
    rerun: set[str] = set()
    for step in steps:
        known = {need: _know(steps, progress, need) for need in step.needs}
        ended = {name: _know(steps, progress, name) for name in step.after}
        known |= {name: when for name, when in ended.items() if when}
        stale = freshness.explain_run(step, known)
        if rerun & set(step.needs) or step.name in forced or stale:
            rerun.add(step.name)
            yield step


def _know(steps: Sequence[Step], progress: _Progress, name: str) -> str:
    """When the needed step ended, from this plan or from its record."""
    if name in progress.finished:
        return progress.finished[name]
    return next((freshness.read_finished(s) for s in steps if s.name == name), "")


# --- the end ----------------------------------------------------------------


def _print_end(plan: Plan) -> None:
    """The table of scores and the path of the index."""
    wide = max(22, *(len(step.name) + 2 for step in plan.steps))
    print(f"\n{'run':<{wide}}{'score':>7}  {'95 % interval':<17}{'time':>10}  state")
    for step in plan.steps:
        record = report.read_record(step.job.folder)
        score, interval = report.format_score(record)
        seconds = record.get("seconds")
        took = display.format_seconds(seconds) if seconds is not None else ""
        state = folders.read_state(record)
        print(f"{step.name:<{wide}}{score:>7}  {interval:<17}{took:>10}  {state}")
    if plan.gates:
        print("\nrung by rung: time, score, gain over the one before")
        print("\n".join(ladder.describe_rungs(plan.gates, plan.runs_dir)))
    submission = plan.runs_dir / "submission.csv"
    if submission.exists():
        print(f"\n{submission}")
    print(f"{report.write_index(plan.runs_dir)}", flush=True)
