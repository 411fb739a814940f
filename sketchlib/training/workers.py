"""Several workers on one search: processes here, Ray tasks, or other servers.

Each worker gets its own GPU, or its share of the cores, and asks the same study. On
another server the same line works on the same search, given a disk (or a database)
that both see: `python -m sketchlib.training.tuning RUNS/SEARCH`. Limits: a worker
that fails ends alone; the others go on, and the failure is raised at the end.
"""

import contextlib
import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna

from sketchlib.training import beside, launch, tuning

ENGINES = ("local", "ray")
_POLL = 1.0  # seconds between two looks at the study
_GRACE = 20.0  # seconds a worker has to end
_DONE = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
Say = Callable[[str], None]


def run(search: tuning.Search, *, engine: str, say: Say) -> optuna.Study:
    """Search with `search.jobs` workers until the budget is used up.

    Args:
        search: see there; 0 jobs is one a GPU.
        engine: `local` processes, or `ray` tasks on the cluster that RAY_ADDRESS
            names, or on one made of this machine.
        say: called with a line for every trial that ends.
    Raises:
        RuntimeError: a worker failed, with its last words.
    """
    search = dataclasses.replace(
        search, jobs=search.jobs or max(1, launch.count_gpus())
    )
    tuning.write_search(search)
    study = tuning.open_study(search)
    if engine == "ray":
        return _run_on_ray(search, study, say)
    if search.jobs == 1:
        return tuning.work(search, say=say)
    with _started(search) as children:
        _follow(study, lambda: all(c.poll() is not None for c in children), say)
    failed = [n for n, child in enumerate(children) if child.returncode]
    if failed:
        log = _log(search, failed[0])
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RuntimeError(
            f"{len(failed)} of {search.jobs} workers failed, the first one: "
            f"{words[-1] if words else 'without a word'} (whole text in {log})"
        )
    return study


def _log(search: tuning.Search, worker: int) -> Path:
    return search.run_dir / f"worker{worker}.log"


@contextlib.contextmanager
def _started(search: tuning.Search) -> Iterator[list[subprocess.Popen]]:
    """The workers running; ended when the block is left."""
    children = []
    try:
        for worker in range(search.jobs):
            with _log(search, worker).open("wb") as log:
                children.append(
                    subprocess.Popen(
                        _make_command(search, worker),
                        env=launch.make_environment(worker, search.jobs),
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield children
    finally:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + _GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(0.1, deadline - time.monotonic()))
            child.kill()


def _make_command(search: tuning.Search, worker: int) -> list[str]:
    module = ("-m", "sketchlib.training.tuning")
    return [sys.executable, *module, str(search.run_dir), str(worker)]


def _follow(study: optuna.Study, is_over: Callable[[], bool], say: Say) -> None:
    """A line for every trial that ended since the last look."""
    told = {t.number for t in study.get_trials(deepcopy=False, states=_DONE)}
    over = False
    while not over:
        over = is_over()
        for trial in study.get_trials(deepcopy=False, states=_DONE):
            if trial.number not in told:
                told.add(trial.number)
                say(f"trial {trial.number} · {_describe(trial)}")
        time.sleep(0 if over else _POLL)


def _describe(trial: optuna.trial.FrozenTrial) -> str:
    value = f"{abs(trial.value or 0.0):.3f}"
    if trial.state == optuna.trial.TrialState.PRUNED:
        return f"pruned after epoch {len(trial.intermediate_values)} at {value}"
    return value


def _run_on_ray(search: tuning.Search, study: optuna.Study, say: Say) -> optuna.Study:
    """One Ray task a worker; Ray keeps the GPUs and cores apart."""
    with beside.ray_opened(search.jobs) as ray:
        share = beside.count_share(ray, search.jobs)
        task = ray.remote(max_retries=2, **share)(_work_remotely)
        threads, folder = int(share["num_cpus"]), str(search.run_dir)
        waiting = [task.remote(folder, n, threads) for n in range(search.jobs)]
        try:
            _follow(
                study,
                lambda: not ray.wait(waiting, num_returns=search.jobs, timeout=0)[1],
                say,
            )
            ray.get(waiting)
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)
    return study


def _work_remotely(folder: str, worker: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    tuning.main([folder, str(worker)])
