"""The folder of a run: who holds it, and what its `run.json` says.

A lock that ends with the processes that hold it keeps two runs from writing one
folder; a record that still says running is corrected when its processes are gone.
Limits: POSIX (flock); processes of another machine cannot be looked for.
"""

import contextlib
import datetime
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sketchlib import workspace
from sketchlib.workbook.jobs import Job

STAMP = "%Y-%m-%dT%H:%M:%S%z"
GRACE = 10.0  # seconds a notebook has to end after an interrupt
_POLL = 0.5  # seconds between two looks at a held lock
_SLACK = 5.0  # seconds by which the clock may have been set


@contextlib.contextmanager
def locked(job: Job) -> Iterator[int]:
    """Hold the run folder; the lock ends with the processes that hold it.

    Raises:
        ValueError: it cannot be written, or another process or machine holds it.
    """
    folder = job.folder
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+")
    except OSError as error:
        raise ValueError(
            f"the run folder `{folder}` cannot be written ({error.strerror}); choose "
            "another place with `--runs DIR`"
        ) from error
    with lock:
        _take_lock(lock, folder, retried=job.attempt > 0)
        try:
            yield lock.fileno()
        finally:
            lock.truncate(0)


def _take_lock(lock: IO[str], folder: Path, *, retried: bool) -> None:
    """Wait for a runner that is gone; `retried`, its machine is known to be lost."""
    holder = _read_holder(lock)
    patience = time.monotonic() + 2 * GRACE
    while not _try_lock(lock):
        holder = _read_holder(lock)
        who = _name_holder(holder)
        here = holder["host"] == socket.gethostname()
        lingering = retried or (here and not is_alive(int(holder["pid"])))
        if not lingering or time.monotonic() > patience:
            raise ValueError(
                f"another run is writing `{folder}` ({who}); wait for it, stop it, or "
                "give this one another name with `-p run_name NAME`"
            )
        time.sleep(_POLL)  # its runner was killed, its kernel is being ended
    if holder["host"] not in ("", socket.gethostname()) and not retried:
        raise ValueError(
            f"`{folder}` is held by {_name_holder(holder)}; if that machine no longer "
            f"runs it, delete `{folder / '.lock'}`"
        )
    lock.truncate(0)
    mine = {"pid": os.getpid(), "host": socket.gethostname()}
    lock.write(json.dumps(mine | {"started": time.strftime(STAMP)}))
    lock.flush()


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(lock: IO[str]) -> dict[str, Any]:
    """Who wrote the lock; blanks when nobody did or it was cut short."""
    lock.seek(0)
    holder: dict[str, Any] = {"pid": 0, "host": "", "started": ""}
    with contextlib.suppress(json.JSONDecodeError, TypeError):
        return holder | json.loads(lock.read())
    return holder


def _name_holder(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}, since {holder['started']}"


def queue_run(job: Job) -> None:
    """Note in `run.json` that the job waits for a place to run."""
    _write_record(job, "queued")


def open_folder(job: Job) -> None:
    """Make way for a new run; results that a resumed run needs stay."""
    job.target.unlink(missing_ok=True)
    job.target.with_suffix(".html").unlink(missing_ok=True)
    (job.folder / "progress.jsonl").write_text("")
    _write_record(job, "running")


def _write_record(job: Job, state: str) -> None:
    started = time.strftime(STAMP)
    who = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
    workspace.write_json(
        job.folder / "run.json",
        {
            "name": job.folder.name,
            "state": state,
            "started": started,
            "runner": who | {"notebook": job.notebook.stem, "timeout": job.timeout},
            "parameters": job.values,
        },
    )


# --- looking at runs --------------------------------------------------------


def read_state(record: dict[str, Any]) -> str:
    """The state in a `run.json`, corrected when the processes that ran it are gone."""
    state = str(record.get("state", ""))
    runner = record.get("runner", {})
    if state not in ("queued", "running"):
        return state
    if runner.get("host", socket.gethostname()) != socket.gethostname():
        return state
    wrote = [(who.get("pid"), who.get("started", "")) for who in (runner, record)]
    alive = [is_alive(int(pid), str(stamp)) for pid, stamp in wrote if pid]
    return state if any(alive) else "killed"


def is_alive(pid: int, stamp: str = "") -> bool:
    """Whether the process runs that had this number when it wrote `stamp`."""
    if stamp and _is_younger(pid, stamp):
        return False  # its number was given to another
    return workspace.is_alive(pid)


def _is_younger(pid: int, stamp: str) -> bool:
    """Whether the process was started after `stamp` (Linux; elsewhere not known)."""
    try:
        written = datetime.datetime.strptime(stamp, STAMP).timestamp()
        ticks = workspace.read_stat(pid)[19]
        lines = Path("/proc/stat").read_text().splitlines()
    except (OSError, ValueError, IndexError):
        return False
    booted = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    return booted + int(ticks) / os.sysconf("SC_CLK_TCK") > written + _SLACK
