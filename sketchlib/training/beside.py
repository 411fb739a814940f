"""Folds side by side: each in a process of its own, with its share of the machine.

Every process gets its own GPU, or its own cores; on a Ray cluster Ray gives them out.
They leave the folders that training one after the other leaves, and the notebook's
loop then reads them like those of an interrupted run. Limits: memory is shared; on a
cluster every node sees the run folder and the caches under the same paths.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from sketchlib import workspace
from sketchlib.training import folds, launch

ENGINES = ("local", "ray")
_POLL = 0.2  # seconds between two looks at the processes
_GRACE = 15.0  # seconds a process has to end
Follow = Callable[[int], launch.OnEpoch]


class Worker(Protocol):
    """One fold that trains elsewhere."""

    def is_over(self) -> bool:
        """Whether it has ended; raises RuntimeError where it failed."""

    def stop(self) -> None:
        """End it; its last checkpoint stays."""


def train_folds(
    task: folds.Task,
    numbers: Sequence[int],
    follow: Follow,
    *,
    jobs: int,
    engine: str = "local",
) -> folds.Task:
    """Train folds, `jobs` at a time, into their folders; nothing when `jobs` is 1.

    After a fold below `target_accuracy` no other is begun.

    Args:
        task: prepared, see `preparation`.
        numbers: the folds.
        follow: fold → what is called with each of its epochs.
        jobs: at a time; 0 is one a GPU.
        engine: `local` processes, or `ray` tasks.
    Returns:
        The task to go on with, which does not forget what was trained here.
    Raises:
        RuntimeError: a fold failed, with its last words; the others are ended.
    """
    jobs = jobs or max(1, launch.count_gpus())
    if jobs == 1 or task.feature_bank is not None:  # heads on it take seconds
        return task
    if task.network.head == "probe":
        folds.extract(task)  # once, not by every process
    ready = task.with_epochs(task.recipe.epochs)  # as the notebook's loop asks
    waiting = [fold for fold in numbers if not folds.is_finished(ready, fold)]
    with _opened(engine, jobs) as start:
        _run(ready, waiting, follow, start, jobs)
    return dataclasses.replace(task, fresh=False)


def _run(
    task: folds.Task,
    waiting: list[int],
    follow: Follow,
    start: Callable[[Path, int], Worker],
    jobs: int,
) -> None:
    running: dict[int, tuple[int, Worker, launch.Epochs]] = {}
    trained = dataclasses.replace(task, fresh=False)
    try:
        while waiting or running:
            free = sorted(
                set(range(jobs)) - {place for place, _, _ in running.values()}
            )
            for place in free[: len(waiting)]:
                fold = waiting.pop(0)
                path = launch.write_task(task, fold)
                epochs = launch.Epochs(path.parent, follow(fold))
                running[fold] = (place, start(path, place), epochs)
            for fold, (_, worker, epochs) in list(running.items()):
                over = worker.is_over()
                epochs.hand_on()
                if over:
                    del running[fold]
                    result = folds.train_fold(trained, fold)
                    waiting = [] if folds.is_hopeless(task, result) else waiting
            time.sleep(_POLL)
    finally:
        for _, worker, _ in running.values():
            worker.stop()


@contextlib.contextmanager
def _opened(engine: str, jobs: int) -> Iterator[Callable[[Path, int], Worker]]:
    """How a fold is started, while the engine runs."""
    if engine == "local":
        yield lambda path, place: _Process(path, place, jobs)
        return
    with ray_opened(jobs) as ray:
        yield lambda path, _: _Task(ray, path, jobs)


# --- on this machine --------------------------------------------------------


class _Process:
    """A process of this machine; `place` numbers its share."""

    def __init__(self, path: Path, place: int, jobs: int) -> None:
        self.path = path
        self.log = path.with_name(launch.LOG)
        with self.log.open("wb") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "sketchlib.training.launch", str(path)],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=launch.make_environment(place, jobs),
            )

    def is_over(self) -> bool:
        code = self.child.poll()
        if code:
            raise RuntimeError(
                f"{self.path.parent.name} ended with code {code}: "
                f"{launch.read_last_words(self.log)} (whole text in {self.log})"
            )
        return code == 0

    def stop(self) -> None:
        self.child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(_GRACE)
        self.child.kill()


# --- on a cluster -----------------------------------------------------------


@contextlib.contextmanager
def ray_opened(jobs: int) -> Iterator[Any]:
    """Ray, connected to what RAY_ADDRESS names or to one made of this machine.

    Raises:
        ValueError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anyone
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "the engine ray needs Ray, which is not installed; run `pip install "
            "'sketchlib[ray]'`, or take the engine local"
        ) from error
    root = {"SKETCHBOOK_ROOT": str(workspace.repo_root())}
    mine = not ray.is_initialized()
    if mine:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"),
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": root | launch.find_library()},
            **_describe_here(jobs),
        )
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _describe_here(jobs: int) -> dict[str, Any]:
    """Places for `jobs` on a cluster made of this machine, however few its cores."""
    if os.environ.get("RAY_ADDRESS"):
        return {}
    return {"num_cpus": max(jobs, len(launch.list_cores()))}


def count_share(ray: Any, jobs: int) -> dict[str, float]:
    """What a task asks of Ray: a GPU where the cluster has some, or its cores."""
    offered = ray.cluster_resources()
    if offered.get("GPU", 0) >= 1:
        return {"num_cpus": 1, "num_gpus": 1}
    return {"num_cpus": max(1, int(offered.get("CPU", 1)) // jobs), "num_gpus": 0}


class _Task:
    """A task on some node of the cluster."""

    def __init__(self, ray: Any, path: Path, jobs: int) -> None:
        self.ray = ray
        share = count_share(ray, jobs)
        made = ray.remote(max_retries=2, **share)(_train_remotely)
        self.sent = made.remote(str(path), int(share["num_cpus"]))

    def is_over(self) -> bool:
        ready, _ = self.ray.wait([self.sent], timeout=0)
        if ready:
            try:
                self.ray.get(self.sent)
            except self.ray.exceptions.RayError as error:
                told = getattr(error, "cause", None) or error
                raise RuntimeError(f"a fold failed on Ray: {told}") from error
        return bool(ready)

    def stop(self) -> None:
        self.ray.cancel(self.sent, force=True)


def _train_remotely(path: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    launch.main([path])
