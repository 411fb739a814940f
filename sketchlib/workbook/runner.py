"""One notebook run: checked before (`jobs`), watched during, told truly after.

A run is one child process (`engine`, on papermill) in a session of its own. This
side holds the lock on the run folder (`folders`), prints progress, forwards Ctrl-C,
keeps the time, ends what is left over, and only then writes how it ended (`outcomes`).
Limits: POSIX (process groups, flock); nothing heavy is imported here.
"""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sketchlib import workspace
from sketchlib.workbook import display, folders, outcomes
from sketchlib.workbook.folders import GRACE
from sketchlib.workbook.jobs import Job
from sketchlib.workbook.outcomes import Ending, Outcome

MARK = "SKETCH_RUN"

_POLL = 0.5  # seconds between two looks at the progress file
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Stopper:
    """A wish to stop, heard by every run that was given it; a handler of signals.

    Asked once, a notebook may save; asked again, it is ended at once.
    """

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask, once more."""
        self.asked += 1


def run_notebook(
    job: Job,
    screen: display.Display | None = None,
    stopper: Stopper | None = None,
) -> Outcome:
    """Run the job and leave a true `run.json`, the executed notebook and its HTML.

    Args:
        job: what to run.
        screen: where progress is shown; None for standard output.
        stopper: ends the run from outside; in the main thread Ctrl-C asks it too.
    Raises:
        ValueError: the run folder cannot be written, or another run holds it.
    """
    from sketchlib.workbook import report

    screen = screen or display.Display(job.folder.name)
    with folders.locked(job) as lock, _private_folder() as scratch:
        folders.open_folder(job)
        started = time.perf_counter()
        ending = _Supervisor(job, screen, stopper or Stopper()).run(scratch, lock)
        seconds = round(time.perf_counter() - started, 1)
        outcome = outcomes.judge(job, ending, seconds)
        outcomes.write_outcome(job, outcome)
        report.write_report(job.folder, job.target)
    screen.close()
    return outcome


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A short folder of mode 0700: a Unix socket's path ends at 107 characters."""
    roomy = len(tempfile.gettempdir()) < 60
    folder = Path(tempfile.mkdtemp(prefix="sk-", dir=None if roomy else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Supervisor:
    """One child process: its events, the clock, signals, and the end."""

    def __init__(self, job: Job, screen: display.Display, stopper: Stopper) -> None:
        self.job, self.screen, self.stopper = job, screen, stopper
        self.heard = 0  # how often we were asked to stop
        self.mark = uuid.uuid4().hex
        self.kernel = 0
        self.ending = Ending()
        self.started = time.monotonic()
        self.deadline = 0.0  # when what was interrupted is killed
        self.ended = False  # was the kernel killed already?
        self.records = display.Tail(job.folder / "progress.jsonl")

    def run(self, scratch: Path, lock: int) -> Ending:
        """Run the child to its end, whatever that is."""
        events, write_end = os.pipe()
        with (
            os.fdopen(events, "rb", buffering=0) as pipe,
            (self.job.folder / "runner.log").open("wb") as log,
        ):
            try:
                self.child = self._start(scratch, (write_end, lock), log)
            finally:
                os.close(write_end)
            with signals_caught(self.stopper):
                self._follow(pipe)
                self._finish()
        return self.ending

    def _start(
        self, scratch: Path, pipes: tuple[int, int], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        job = {
            "notebook": str(self.job.notebook),
            "target": str(self.job.target),
            "overrides": self.job.overrides,
            "scratch": str(scratch),
            "pipe": pipes[0],
            "mark": self.mark,
        }
        workspace.write_json(scratch / "job.json", job)
        command = [sys.executable, "-P", "-m", "sketchlib.workbook.engine"]
        return subprocess.Popen(
            [*command, str(scratch / "job.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=pipes,
            env=_environment(scratch, self.mark, self.job.threads),
            start_new_session=True,
        )

    def _follow(self, pipe: IO[bytes]) -> None:
        """Read events until the child closes its end, by finishing or by dying."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ready = selector.select(_POLL)
                self._show_progress()  # before the cell that wrote it is told finished
                if ready:
                    received = os.read(pipe.fileno(), 65536)
                    if not received:
                        break
                    *lines, rest = (rest + received).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
                self._check_clock()

    def _show_progress(self) -> None:
        for record in self.records.read():
            self.screen.progress(record)

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "kernel":
            self.kernel = event["pid"]
        elif event["event"] == "start":
            self.ending.cell = event["id"]
        elif event["event"] == "cell":
            self.screen.cell(event)
        elif event["event"] == "warning":
            self.screen.line(event["text"])
        elif event["event"] == "end":
            self.ending.facts = event

    def _check_clock(self) -> None:
        now = time.monotonic()
        if self.heard < self.stopper.asked:
            self.heard += 1
            self.interrupt()
        if self.job.timeout and now - self.started > self.job.timeout:
            self.stop("timeout")
        if self.deadline and now > self.deadline:
            if self.kernel and not self.ended:
                self._end_kernel()
            else:
                self._kill()

    def interrupt(self) -> None:
        """Ctrl-C or a polite kill: the first asks the kernel, the second ends it."""
        if self.ending.reason:
            self.deadline = time.monotonic()
        self.stop("interrupted")

    def stop(self, reason: str) -> None:
        """Interrupt the running cell, once, so that it can save; kill it later."""
        if self.ending.reason:
            return
        self.ending.reason = reason
        self.deadline = time.monotonic() + (GRACE if self.kernel else 0)
        if self.kernel:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.kernel, signal.SIGINT)

    def _end_kernel(self) -> None:
        """Kill the kernel alone; the child notices, and saves the notebook."""
        self.ended, self.deadline = True, time.monotonic() + GRACE
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.kernel, signal.SIGKILL)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        end_processes(self.kernel, self.mark)

    def _finish(self) -> None:
        """The child is closing: give it a moment, then leave no process behind."""
        try:
            self.ending.code = self.child.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._kill()
            self.ending.code = self.child.wait()
        end_processes(self.kernel, self.mark)
        if self.child.stdin:
            self.child.stdin.close()
        self._show_progress()


def _environment(scratch: Path, mark: str, threads: int) -> dict[str, str]:
    """The child's environment: our library findable, nothing written to the home."""
    limits = dict.fromkeys(_THREAD_LIMITS, str(threads)) if threads else {}
    library = str(Path(workspace.__file__).resolve().parents[1])
    searched = os.environ.get("PYTHONPATH", "")
    return (
        os.environ
        | limits
        | {
            MARK: mark,
            "PYTHONPATH": f"{library}{os.pathsep}{searched}" if searched else library,
            "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "IPYTHONDIR": str(scratch / "ipython"),
        }
    )


@contextlib.contextmanager
def signals_caught(handler: Any) -> Iterator[None]:
    """Ctrl-C, a polite kill and a closed terminal go to `handler` inside the block.

    A signal that was ignored before, as by `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    caught = [n for n in known if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in caught}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_processes(kernel: int, mark: str) -> None:
    """Kill the kernel's group and whatever else carries this run's mark."""
    if kernel:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(kernel, signal.SIGKILL)
    for _ in range(3):  # a process may fork while we look
        marked = _find_marked(mark)
        for pid in marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not marked:
            break


def _find_marked(mark: str) -> list[int]:
    """Processes with the mark in their environment (Linux), detached ones too."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in entry.read_bytes() and int(entry.parent.name) != os.getpid():
                found.append(int(entry.parent.name))
    return found
