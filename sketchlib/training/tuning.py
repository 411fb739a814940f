"""Search on Optuna: a study in a journal file or a database, worked on by many.

A study is resumed by its name. Any number of workers, also on other machines, ask it
for trials; a worker that dies leaves a trial without a heartbeat, which the next one
to look fails and asks for again, so that it goes on at its last epoch. Pruning is
Optuna's, on the score reported after each epoch. Limits: the journal needs a disk
that all workers see; a trial that has begun is not cut by the budget.
"""

import contextlib
import datetime
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from sketchlib import workspace
from sketchlib.data import decisions, manifest
from sketchlib.training import launch, spaces, trials

BEAT_SECONDS = 20.0  # between two signs of life of a trial
STALE_SECONDS = 180.0  # without one, a trial on another machine counts as dead
OBJECTIVES = ("accuracy", "log_loss")
_ASKED, _JOURNAL = "search.json", "journal.log"
_LIVE = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Search:
    """What is searched and how; written to `search.json`, which starts a worker.

    Attributes:
        run_dir: the search's run folder; trials are its siblings.
        data_dir: the drawings.
        columns: the user's column names.
        folds_file: `folds.csv` of 01_eda.
        storage: database URL; empty for a journal file in `run_dir`.
        base: every parameter of 03_train, the baseline.
        space: see `spaces.as_plain`.
        folds: how many folds a trial holds out in turn.
        objective: accuracy, or log_loss (which is minimised).
        sampler: tpe or random.
        pruner: asha, hyperband or none.
        reduction: one in so many trials goes on beyond a rung.
        trials: how many end well, pruned ones included; 0 is no limit.
        minutes: how long the study works, earlier sessions included; 0 is no limit.
        retries: how often a trial whose worker died is asked for again.
        jobs: how many workers share the minutes.
        seed: of the sampler.
    """

    run_dir: Path
    data_dir: Path
    columns: Sequence[str]
    folds_file: Path
    storage: str
    base: Mapping[str, Any]
    space: Mapping[str, Any]
    folds: int
    objective: str
    sampler: str
    pruner: str
    reduction: int
    trials: int
    minutes: float
    retries: int
    jobs: int
    seed: int

    def __post_init__(self) -> None:
        if not self.trials and not self.minutes:
            raise ValueError("a search needs an end: set `trials`, `minutes` or both")

    @property
    def name(self) -> str:
        return self.run_dir.name


def write_search(search: Search) -> Path:
    """Write `search.json`; any worker can be started with it."""
    return workspace.write_json(search.run_dir / _ASKED, search)


def read_search(path: Path) -> Search:
    """The search in a `search.json`, or in the folder that holds it."""
    path = path / _ASKED if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` was expected; start the search with 06_tune first"
        )
    plain = workspace.read_json(path)
    paths = {name: Path(plain[name]) for name in ("run_dir", "data_dir", "folds_file")}
    return Search(**(plain | paths))


def read_world(search: Search) -> trials.World:
    """The data all trials share."""
    columns = manifest.make_columns(list(search.columns))
    table = manifest.read_manifest(search.data_dir, columns)
    verdicts = decisions.read_decisions(decisions.find_path(search.data_dir))
    return trials.World(
        decisions.overlay(table, verdicts),
        pd.read_csv(search.folds_file, keep_default_na=False),
        search.data_dir,
        search.run_dir.parent,
    )


# --- the study --------------------------------------------------------------


def open_study(search: Search, worker: int = 0) -> optuna.Study:
    """The study of this name, made or continued.

    Raises:
        ValueError: it is of another space, baseline or objective.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=search.name,
        storage=_open_storage(search),
        sampler=_make_sampler(search, worker),
        pruner=_make_pruner(search),
        direction="maximize",
        load_if_exists=True,
    )
    asked = workspace.hash_value(
        [search.base, search.space, search.folds, search.objective]
    )
    if study.user_attrs.get("asked", asked) != asked:
        raise ValueError(
            f"the study {search.name!r} was begun with another space, baseline, number "
            "of folds or objective; give another `run_name`, or set `fresh: true`"
        )
    if "asked" not in study.user_attrs:
        study.set_user_attr("asked", asked)
        _ask_for_baseline(study, search)
    return study


def _open_storage(search: Search) -> optuna.storages.BaseStorage:
    if search.storage:
        return RDBStorage(search.storage, engine_kwargs={"pool_pre_ping": True})
    path = search.run_dir / _JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path))
    mend_journal(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def mend_journal(path: Path, lock: JournalFileOpenLock) -> int:
    """Take out lines that a kill or a full disk cut short; returns how many.

    Optuna skips a broken last line, but the next worker's would be glued to it and
    then nobody can read the journal. What was taken out goes beside it.
    """
    if not path.exists():
        return 0
    lock.acquire()
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        broken = [line for line in lines if not _is_whole(line)]
        if broken:
            with path.with_suffix(".broken").open("ab") as out:
                out.writelines(line.rstrip(b"\n") + b"\n" for line in broken)
            with workspace.atomic_path(path) as temporary:
                temporary.write_bytes(b"".join(x for x in lines if _is_whole(x)))
            print(f"notice: {len(broken)} cut line(s) taken out of {path}")
        return len(broken)
    finally:
        lock.release()


def _is_whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _make_sampler(search: Search, worker: int) -> optuna.samplers.BaseSampler:
    """Workers differ in their seed, and TPE counts on running trials to be poor."""
    seed = search.seed * 1000 + worker
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=6)


def _make_pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=1, reduction_factor=search.reduction
        )
    if search.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=1,
            max_resource=int(search.base["epochs"]),
            reduction_factor=search.reduction,
        )
    return optuna.pruners.NopPruner()


def _ask_for_baseline(study: optuna.Study, search: Search) -> None:
    """The baseline's own values come first, where the space holds them."""
    space = spaces.from_plain(search.space)
    own = dict(search.base) | spaces.OWN
    wanted = {d.name: own[d.name] for d in space.dimensions if d.name != "strength"}
    if all(d.holds(own[d.name]) for d in space.dimensions if d.name in wanted):
        study.enqueue_trial(wanted, user_attrs={"baseline": True})


# --- budget and the dead ----------------------------------------------------


def _is_surplus(study: optuna.Study, search: Search) -> bool:
    """Whether trials and minutes are used up; waiting trials count when they run."""
    found = study.get_trials(deepcopy=False)
    used = sum(trial.state in _LIVE for trial in found)
    return bool(search.trials and used >= search.trials) or (
        bool(search.minutes) and _spent(found) / search.jobs >= search.minutes * 60
    )


def _spent(found: Sequence[FrozenTrial]) -> float:
    """Seconds of all trials that ended well."""
    ended = [trial.duration for trial in found if trial.state in _LIVE[1:]]
    return sum(time_.total_seconds() for time_ in ended if time_)


def fail_dead(study: optuna.Study, search: Search) -> list[int]:
    """Fail trials whose worker is gone, and ask for them again; returns their numbers.

    On this machine the process is looked for; elsewhere the heartbeat counts.
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_dead(trial):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (ValueError, RuntimeError):  # another worker was faster
            continue
        failed.append(trial.number)
        tries = int(trial.user_attrs.get("tries", 0))
        if tries < search.retries and "run" in trial.user_attrs:
            kept = {"run": trial.user_attrs["run"], "tries": tries + 1}
            study.enqueue_trial(trial.params, user_attrs=kept)
    return failed


def _is_dead(trial: FrozenTrial) -> bool:
    facts = trial.user_attrs
    began = trial.datetime_start or datetime.datetime.now()
    beat = float(facts.get("beat", began.timestamp()))
    if facts.get("host") == socket.gethostname() and not workspace.is_alive(
        int(facts["pid"])
    ):
        return True
    return time.time() - beat > STALE_SECONDS


@contextlib.contextmanager
def _beating(trial: optuna.Trial) -> Iterator[None]:
    """Signs of life while the block runs; the first says who works on the trial."""
    trial.set_user_attr("pid", os.getpid())
    trial.set_user_attr("host", socket.gethostname())
    trial.set_user_attr("beat", time.time())
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # storage away for a moment
                trial.set_user_attr("beat", time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- working ----------------------------------------------------------------


def work(
    search: Search, *, worker: int = 0, say: Callable[[str], None] = print
) -> optuna.Study:
    """Run trials until trials or minutes are used up; the dead ones' first.

    Raises:
        RuntimeError: three trials in a row failed; says why the last one did.
    """
    world, study = read_world(search), open_study(search, worker)
    failures = 0
    while True:
        fail_dead(study, search)
        if _is_surplus(study, search):
            return study
        trial = study.ask()
        state, told = _run_trial(study, trial, search, world)
        say(f"trial {trial.number} · {told}")
        failures = failures + 1 if state == TrialState.FAIL else 0
        if failures == 3:
            raise RuntimeError(f"three trials in a row failed, the last one: {told}")


def _run_trial(
    study: optuna.Study, trial: optuna.Trial, search: Search, world: trials.World
) -> tuple[TrialState, str]:
    """Run and tell; what a recipe does wrong fails the trial, not the study."""
    try:
        with _beating(trial):
            value = _score_trial(trial, search, world)
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=TrialState.PRUNED)
        return TrialState.PRUNED, str(pruned)
    except (ValueError, FloatingPointError, RuntimeError, MemoryError) as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {error}")
        study.tell(trial, state=TrialState.FAIL)
        return TrialState.FAIL, f"failed: {type(error).__name__}: {error}"
    study.tell(trial, value)
    return TrialState.COMPLETE, f"{search.objective} {abs(value):.3f}"


def _score_trial(trial: optuna.Trial, search: Search, world: trials.World) -> float:
    found = spaces.suggest(trial, spaces.from_plain(search.space))
    kind, strength = str(found.pop("trial")), float(found.pop("strength"))  # type: ignore[arg-type]
    name = trial.user_attrs.get("run", f"{search.name}-{trial.number:03}")
    values = dict(search.base) | found | {"run_name": name}
    trial.set_user_attr("run", name)
    trial.set_user_attr("kind", kind)
    trial.set_user_attr("planned", int(values["epochs"]) if kind == "train" else 0)
    run = workspace.open_run(
        world.runs_dir, name, values, notebook="trial", search=search.name, kind=kind
    )
    for row in _read_epochs(run):  # of a worker that died
        _report(trial, row, search, int(values["epochs"]))
    task = trials.make_task(world, values, run.dir, test=False)
    if kind == "probe":
        oof = trials.probe(task, search.folds, strength)
    else:
        follow = _make_follower(trial, run, search, int(values["epochs"]))
        oof = trials.train(task, search.folds, follow)
    trials.drop_weights(run.dir)
    scores = trials.score(oof, world.table)
    run.finish(scores=scores, folds=search.folds, strength=strength)
    return scores["accuracy"] if search.objective == "accuracy" else -scores["log_loss"]


def _read_epochs(run: workspace.Run) -> list[dict[str, float]]:
    path = run.dir / "metrics.jsonl"
    return workspace.read_jsonl(path) if path.exists() else []


def _report(
    trial: optuna.Trial, row: Mapping[str, float], search: Search, epochs: int
) -> int:
    """Tell the study the score after an epoch; returns the step, counted over folds."""
    good = search.objective == "accuracy"
    value = row["valid_accuracy"] if good else -row["valid_loss"]
    step = int(row["fold"]) * epochs + int(row["epoch"])
    trial.report(float(value), step)
    return step


def _make_follower(
    trial: optuna.Trial, run: workspace.Run, search: Search, epochs: int
) -> trials.OnEpoch:
    """Log and report each epoch; end the trial where it falls behind.

    Pruning looks at the first fold alone: later folds are other pictures.
    """

    def follow(fold: int, row: dict[str, float]) -> None:
        run.log(fold=fold, **row)
        step = _report(trial, row | {"fold": fold}, search, epochs)
        if fold == 0 and step < epochs and trial.should_prune():
            trials.drop_weights(run.dir)
            scores = {"accuracy": row["valid_accuracy"], "log_loss": row["valid_loss"]}
            run.finish(scores=scores, pruned_after=step)
            raise optuna.TrialPruned(
                f"pruned after epoch {step} of {epochs} at accuracy "
                f"{row['valid_accuracy']:.3f}"
            )

    return follow


# --- what came of it --------------------------------------------------------


def read_trials(study: optuna.Study, search: Search) -> pd.DataFrame:
    """One row per trial, in the order they were asked for.

    Returns:
        number, state (complete, pruned, failed, running), kind (train, probe), score
        (accuracy 0-1, or nats of log loss; of a pruned trial the last one reported),
        first (after the first epoch), epochs (run), planned, seconds, run, baseline,
        and a column for each parameter that varies.
    """
    sign = 1 if search.objective == "accuracy" else -1
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        reported = trial.intermediate_values
        last = reported[max(reported)] if reported else None
        value = trial.value if trial.state == TrialState.COMPLETE else last
        facts = trial.user_attrs
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower().replace("fail", "failed"),
                "kind": facts.get("kind", ""),
                "score": float("nan") if value is None else sign * value,
                "first": sign * reported[1] if 1 in reported else float("nan"),
                "epochs": len(reported),
                "planned": facts.get("planned", 0) * search.folds,
                "seconds": trial.duration.total_seconds() if trial.duration else 0.0,
                "run": facts.get("run", ""),
                "baseline": bool(facts.get("baseline", False)),
                **trial.params,
            }
        )
    return pd.DataFrame(rows)


def read_curves(study: optuna.Study, search: Search) -> pd.DataFrame:
    """number, state, step (epochs), value: what each trial reported."""
    sign = 1 if search.objective == "accuracy" else -1
    rows = [
        (trial.number, trial.state.name.lower(), step, sign * value)
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        for step, value in sorted(trial.intermediate_values.items())
    ]
    return pd.DataFrame(rows, columns=["number", "state", "step", "value"])


def rank_trials(table: pd.DataFrame, search: Search, kind: str = "") -> pd.DataFrame:
    """The trials that ran to their end, best first."""
    done = table[(table["state"] == "complete") & (~table["baseline"])]
    done = done[done["kind"] == kind] if kind else done
    return done.sort_values("score", ascending=search.objective == "log_loss")


def saved_epochs(table: pd.DataFrame) -> float:
    """Share of the fine-tuning epochs planned that pruning saved, 0-1."""
    tuned = table[
        (table["kind"] == "train") & table["state"].isin(("complete", "pruned"))
    ]
    planned = tuned["planned"].sum()
    return 1 - tuned["epochs"].sum() / planned if planned else 0.0


def read_values(search: Search, run: str) -> dict[str, Any]:
    """Every parameter a trial ran with."""
    record = workspace.read_json(search.run_dir.parent / run / "run.json")
    return dict(record["parameters"])


def weigh_parameters(study: optuna.Study, search: Search) -> tuple[pd.Series, str]:
    """How much of the score's variance each parameter explains, and of which trials.

    Optuna's estimate, on fine-tuned trials. Few run to their end, so the score after
    the first epoch, which all have, is taken while fewer than eight did.
    Returns:
        Shares by parameter, 0-1, largest first; what they are of. Empty where fewer
        than four trials can be compared.
    """
    found = study.get_trials(deepcopy=False)
    tuned = [trial for trial in found if trial.user_attrs.get("kind") == "train"]
    done = [trial for trial in tuned if trial.state == TrialState.COMPLETE]
    by_first = len(done) < 8
    usable = [t for t in tuned if 1 in t.intermediate_values] if by_first else done
    basis = "after the first epoch" if by_first else "at the end"
    if len(usable) < 4:
        return pd.Series(dtype=float), basis
    told = f"{basis}, {len(usable)} fine-tuned trials"
    return _weigh(usable, by_first), told


def _weigh(usable: Sequence[FrozenTrial], by_first: bool) -> pd.Series:
    """Optuna compares trials with the same parameters alone, hence a copy."""
    names = set.intersection(*(set(trial.params) for trial in usable)) - {"trial"}
    study = optuna.create_study(direction="maximize")
    for trial in usable:
        value = trial.intermediate_values[1] if by_first else trial.value
        study.add_trial(
            optuna.create_trial(
                params={name: trial.params[name] for name in names},
                distributions={name: trial.distributions[name] for name in names},
                value=value,
            )
        )
    shares = optuna.importance.get_param_importances(study)
    return pd.Series(shares, dtype=float).sort_values(ascending=False)


def forget(search: Search) -> None:
    """Take the study away, and put its journal aside."""
    if search.storage:
        with contextlib.suppress(KeyError):
            optuna.delete_study(study_name=search.name, storage=search.storage)
    path = search.run_dir / _JOURNAL
    if path.exists():
        os.replace(path, path.with_suffix(f".{int(time.time())}.old"))
    for run in search.run_dir.parent.glob(f"{search.name}-[0-9][0-9][0-9]"):
        (run / "metrics.jsonl").unlink(missing_ok=True)


def main(arguments: Sequence[str]) -> None:
    """Work on the search in the folder named; the second word numbers the worker."""
    launch.pin_cores()
    search = read_search(Path(arguments[0]))
    worker = int(arguments[1]) if len(arguments) > 1 else os.getpid()
    work(search, worker=worker)


if __name__ == "__main__":
    main(sys.argv[1:])
