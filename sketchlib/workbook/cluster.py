"""Where a plan's steps run as Ray tasks: this machine or a cluster.

Every step is one task with the CPUs and GPUs it needs; Ray chooses the node. When a
node is lost, the step is started again elsewhere and resumes from its run folder.
Limits: every node sees the repository, the data and the runs folder under the same
paths (a shared disk), with the same Python environment.
"""

import contextlib
import dataclasses
import importlib
import os
import time
from collections.abc import Iterator
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import folders, schedule
from sketchlib.workbook.jobs import Job
from sketchlib.workbook.outcomes import EXIT_CODES, Outcome
from sketchlib.workbook.plan import Step

_ATTEMPTS = 4  # of one step, when its node is lost
_REPORTS_OFF = {"RAY_USAGE_STATS_ENABLED": "0"}  # nothing is sent to anyone


@contextlib.contextmanager
def connect(address: str) -> Iterator["Cluster"]:
    """A connection to a Ray cluster, closed afterwards.

    Args:
        address: `local` to start one on this machine, `auto` for the one that runs
            here, or `host:port`.
    Raises:
        ValueError: Ray is not installed, or nothing answers there.
    """
    ray = _import_ray()
    here = address == "local"
    variables = {"SKETCHBOOK_ROOT": str(workspace.repo_root())}
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            include_dashboard=False if here else None,
            logging_level="warning",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster answers at `{address}` ({error}); start one with `ray "
            "start --head`, or use `--ray local`"
        ) from error
    try:
        yield Cluster(ray)
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    for name, value in _REPORTS_OFF.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            "--ray needs the package ray, which is not installed; run `pip install "
            "'sketchlib[ray]'`, or use `--jobs N`"
        ) from error


class Cluster:
    """A place for steps: Ray's nodes."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self._task = ray.remote(schedule.run_job)
        self._running: dict[Any, tuple[Step, Job]] = {}
        self._asked = 0

    def has_room(self, running: int) -> bool:
        """Always: Ray keeps what it has no room for."""
        return True

    def start(self, step: Step, job: Job) -> None:
        """Hand the job to Ray.

        Raises:
            ValueError: no node has what the step needs.
        """
        self._check_needs(step)
        folders.queue_run(job)
        self._submit(step, dataclasses.replace(job, threads=max(1, int(step.cpus))))

    def _check_needs(self, step: Step) -> None:
        """Ray would wait forever for a node that may still join."""
        offers = [n["Resources"] for n in self.ray.nodes() if n["Alive"]]
        wanted = {"CPU": step.cpus, "GPU": step.gpus}
        if any(all(o.get(k, 0) >= v for k, v in wanted.items()) for o in offers):
            return
        best = {k: max((o.get(k, 0) for o in offers), default=0) for k in wanted}
        raise ValueError(
            f"step `{step.name}` needs {step.cpus:g} CPUs and {step.gpus:g} GPUs on "
            f"one node, but the largest has {best['CPU']:g} and {best['GPU']:g}; "
            "change `cpus` and `gpus` of the step, or start a larger node"
        )

    def _submit(self, step: Step, job: Job) -> None:
        sent = self._task.options(
            num_cpus=step.cpus, num_gpus=step.gpus, max_retries=0, name=step.name
        ).remote(job)
        self._running[sent] = (step, job)

    def wait(self, seconds: float) -> list[tuple[Step, Outcome]]:
        """The steps that ended; those of a lost node are started again instead."""
        ready, _ = self.ray.wait(list(self._running), timeout=seconds)
        ended = []
        for sent in ready:
            step, job = self._running.pop(sent)
            outcome = self._collect(sent, step, job)
            if outcome:
                ended.append((step, outcome))
        return ended

    def _collect(self, sent: Any, step: Step, job: Job) -> Outcome | None:
        """How the task ended; None when it was started again."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(sent)  # type: ignore[no-any-return]
        except (errors.TaskCancelledError, KeyboardInterrupt):
            return _stopped(job, "interrupted", "stopped on request")
        except errors.RayTaskError as error:
            return _stopped(job, "failed", str(error.cause))
        except errors.RayError as error:
            lost = type(error).__name__
        if self._asked or job.attempt + 1 >= _ATTEMPTS:
            return _stopped(job, "killed", f"its node was lost ({lost})")
        print(f"{step.name}: its node was lost ({lost}); again elsewhere", flush=True)
        self._submit(step, dataclasses.replace(job, attempt=job.attempt + 1))
        return None

    def stop(self) -> None:
        """Interrupt every task, which saves and ends its run; asked again, kill it."""
        self._asked += 1
        for sent in self._running:
            self.ray.cancel(sent, force=self._asked > 1)


def _stopped(job: Job, state: str, message: str) -> Outcome:
    """The outcome of a task that came back without one; its record is made true."""
    error = {"cell": "", "name": state.capitalize(), "message": message}
    path = job.folder / "run.json"
    with contextlib.suppress(OSError, ValueError):
        record = workspace.read_json(path)
        if record.get("state") in ("queued", "running"):
            stamp = {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            workspace.write_json(
                path, record | stamp | {"state": state, "error": error}
            )
    return Outcome(state, EXIT_CODES[state], job.folder, 0.0, error)
