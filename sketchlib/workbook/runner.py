"""One notebook run: checked before, watched during, told truly after.

A run is one child process (`engine`, on papermill) in a session of its own. This
side holds the lock on the run folder, prints progress, forwards Ctrl-C, keeps the
time, ends what is left over, and only then writes how it ended into `run.json` and
the executed notebook: papermill calls every cell of a killed kernel completed.
Exit codes: 0 done, 1 notebook error, 2 bad input, 124 time-out, 130 interrupted,
137 killed. Limits: POSIX (process groups, flock); nothing heavy is imported here.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import html
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sketchlib import workspace
from sketchlib.workbook import display, parameters

MARK = "SKETCH_RUN"
EXIT_CODES = {
    "done": 0,
    "failed": 1,
    "incomplete": 1,
    "timeout": 124,
    "interrupted": 130,
    "killed": 137,
}
BAD_INPUT = 2
BANNER_TAG = "sketch-state"

_POLL = 0.5  # seconds between two looks at the progress file
_SLACK = 5.0  # seconds by which the clock may have been set
_GRACE = 10.0  # seconds a notebook has to end after an interrupt
_CHECK_CELLS = ("setup", "check")
_INPUT_ERRORS = ("ValueError", "FileNotFoundError", "KeyError")
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_STAMP = "%Y-%m-%dT%H:%M:%S%z"


@dataclasses.dataclass(frozen=True)
class Job:
    """A notebook with checked parameters.

    `values` holds every parameter, `overrides` only what was asked for; `timeout`
    is in seconds for the whole run, 0 for none; `facts` go into `run.json`;
    `threads` are the processor threads it may use, 0 for all; `attempt` counts the
    times its machine was lost.
    """

    notebook: Path
    values: dict[str, parameters.Value]
    overrides: dict[str, parameters.Value]
    timeout: float = 0.0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = 0
    attempt: int = 0

    @property
    def folder(self) -> Path:
        """The run folder, `<runs_dir>/<run_name>`."""
        runs_dir = workspace.resolve_path(str(self.values["runs_dir"]))
        return runs_dir / str(self.values["run_name"])

    @property
    def target(self) -> Path:
        """Where the executed notebook goes."""
        return self.folder / self.notebook.name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: one of `workspace.STATES`, its exit code, and why."""

    state: str
    exit_code: int
    folder: Path
    seconds: float
    error: dict[str, str] | None = None

    @property
    def message(self) -> str:
        """Why it did not end well, in a line or two; empty when it did."""
        if self.error is None:
            return ""
        if self.exit_code == BAD_INPUT:
            return self.error["message"]
        cell = f" in cell `{self.error['cell']}`" if self.error["cell"] else ""
        return f"{self.state}{cell}: {self.error['name']}: {self.error['message']}"


# --- before -----------------------------------------------------------------


def make_job(
    notebook: Path,
    overrides: dict[str, parameters.Value],
    *,
    timeout: float = 0.0,
    facts: dict[str, Any] | None = None,
) -> Job:
    """A job from a notebook and checked overrides.

    Raises:
        ValueError: the notebook names no kernel, or lacks `runs_dir` and `run_name`,
            or `run_name` is not a folder name.
    """
    schema = parameters.read_parameters(notebook)
    _check_runnable(notebook, schema)
    values = {name: known.default for name, known in schema.items()} | overrides
    workspace.check_run_name(str(values["run_name"]))
    job = Job(notebook, values, overrides, timeout, facts or {})
    if job.target == notebook:
        raise ValueError(
            f"`{notebook}` is the executed copy that this run would overwrite; run the "
            "notebook it was made from"
        )
    return job


def _check_runnable(notebook: Path, schema: parameters.Schema) -> None:
    metadata = parameters.read_notebook(notebook).get("metadata", {})
    if not metadata.get("kernelspec", {}).get("name"):
        raise ValueError(
            f"`{notebook.name}` should name its kernel, but its metadata has no "
            "kernelspec; open it in JupyterLab, choose Python 3, and save"
        )
    for name in ("runs_dir", "run_name"):
        if name not in schema or schema[name].type != "str":
            raise ValueError(
                f"`{notebook.name}` should have the text parameter `{name}`, which "
                f"says where the run is written; add `{name}: str = ...` to its "
                "parameter cell"
            )


def collect_overrides(
    notebook: Path,
    files: Sequence[str],
    pairs: Sequence[Sequence[str]],
    runs_dir: str = "",
) -> dict[str, parameters.Value]:
    """What was asked on a command line: files in order, then `--runs`, then `-p`."""
    schema = parameters.read_parameters(notebook)
    asked: dict[str, parameters.Value] = {}
    for file in files:
        path = Path(file) if Path(file).exists() else workspace.resolve_path(file)
        given = parameters.read_overrides(path)
        asked |= parameters.check_overrides(schema, given, str(file))
    if runs_dir:
        asked["runs_dir"] = parameters.absolute(runs_dir)
    given = parameters.resolve_given(schema, pairs)
    return asked | parameters.check_overrides(schema, given, parameters.COMMAND_LINE)


# --- the run ----------------------------------------------------------------


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
    with _locked(job) as lock, _private_folder() as scratch:
        _open_folder(job)
        started = time.perf_counter()
        ending = _Supervisor(job, screen, stopper or Stopper()).run(scratch, lock)
        seconds = round(time.perf_counter() - started, 1)
        outcome = _judge(job, ending, seconds)
        _close_folder(job, outcome)
        report.write_report(job.folder, job.target)
    screen.close()
    return outcome


@contextlib.contextmanager
def _locked(job: Job) -> Iterator[int]:
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
    patience = time.monotonic() + 2 * _GRACE
    while not _try_lock(lock):
        holder = _read_holder(lock)
        who = _name_holder(holder)
        here = holder["host"] == socket.gethostname()
        lingering = retried or (here and not _is_alive(int(holder["pid"])))
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
    lock.write(json.dumps(mine | {"started": time.strftime(_STAMP)}))
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


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """A short folder of mode 0700: a Unix socket's path ends at 107 characters."""
    roomy = len(tempfile.gettempdir()) < 60
    folder = Path(tempfile.mkdtemp(prefix="sk-", dir=None if roomy else "/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def queue_run(job: Job) -> None:
    """Note in `run.json` that the job waits for a place to run."""
    _write_record(job, "queued")


def _open_folder(job: Job) -> None:
    """Make way for a new run; results that a resumed run needs stay."""
    job.target.unlink(missing_ok=True)
    job.target.with_suffix(".html").unlink(missing_ok=True)
    (job.folder / "progress.jsonl").write_text("")
    _write_record(job, "running")


def _write_record(job: Job, state: str) -> None:
    started = time.strftime(_STAMP)
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


@dataclasses.dataclass
class _Ending:
    """What is known when the child is gone."""

    reason: str = ""  # "timeout" or "interrupted" when we ended it
    cell: str = ""  # the last cell that started
    facts: dict[str, Any] | None = None  # of the child's event `end`
    code: int = 0  # the child's exit code, negative for a signal


class _Supervisor:
    """One child process: its events, the clock, signals, and the end."""

    def __init__(self, job: Job, screen: display.Display, stopper: Stopper) -> None:
        self.job, self.screen, self.stopper = job, screen, stopper
        self.heard = 0  # how often we were asked to stop
        self.mark = uuid.uuid4().hex
        self.kernel = 0
        self.ending = _Ending()
        self.started = time.monotonic()
        self.deadline = 0.0  # when what was interrupted is killed
        self.ended = False  # was the kernel killed already?
        self.records = display.Tail(job.folder / "progress.jsonl")

    def run(self, scratch: Path, lock: int) -> _Ending:
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
        self.deadline = time.monotonic() + (_GRACE if self.kernel else 0)
        if self.kernel:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.kernel, signal.SIGINT)

    def _end_kernel(self) -> None:
        """Kill the kernel alone; the child notices, and saves the notebook."""
        self.ended, self.deadline = True, time.monotonic() + _GRACE
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.kernel, signal.SIGKILL)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signal.SIGKILL)
        end_processes(self.kernel, self.mark)

    def _finish(self) -> None:
        """The child is closing: give it a moment, then leave no process behind."""
        try:
            self.ending.code = self.child.wait(_GRACE)
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


# --- after ------------------------------------------------------------------


def _judge(job: Job, ending: _Ending, seconds: float) -> Outcome:
    """How the run really ended."""
    facts = ending.facts or {}
    state, error = str(facts.get("state", "")), _read_error(job, ending)
    if state == "done" and ending.code == 0:
        return Outcome("done", 0, job.folder, seconds)
    if ending.reason:
        return Outcome(
            ending.reason, EXIT_CODES[ending.reason], job.folder, seconds, error
        )
    if not facts or state == "done":  # the child died, or could not save at the end
        state = "killed" if ending.code < 0 else "failed"
    code = EXIT_CODES[state]
    if (
        state == "failed"
        and error["cell"] in _CHECK_CELLS
        and error["name"] in _INPUT_ERRORS
    ):
        code = BAD_INPUT
    return Outcome(state, code, job.folder, seconds, error)


def _read_error(job: Job, ending: _Ending) -> dict[str, str]:
    """Cell, name and message of what went wrong, from the child or from its log."""
    facts = ending.facts or {}
    error = {key: str(facts.get(key, "")) for key in ("cell", "name", "message")}
    if not ending.facts:
        error["cell"] = ending.cell
    if ending.reason == "timeout":
        limit = f"the limit of {job.timeout:g} s (--timeout) was reached"
        return error | {"name": "TimeoutError", "message": limit}
    if ending.reason == "interrupted":
        return error | {"name": "KeyboardInterrupt", "message": "stopped on request"}
    if facts.get("state") == "killed" or (not facts and ending.code < 0):
        message = (
            "the kernel was killed, often because memory ran out; see "
            f"{job.folder / 'runner.log'}"
        )
        return error | {"name": "Killed", "message": message}
    if not facts:
        return error | _read_log(job.folder / "runner.log")
    if error["name"] == "KeyError":
        error["message"] = error["message"].strip("'\"")
    return error


def _read_log(path: Path) -> dict[str, str]:
    """Name and message of the exception that ended the child, as Python logged it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    name, _, message = last.partition(": ")
    return {"name": name.rpartition(".")[2], "message": message or f"see {path}"}


def _close_folder(job: Job, outcome: Outcome) -> None:
    """Write the true end into `run.json` and the executed notebook."""
    path = job.folder / "run.json"
    record = workspace.read_json(path)
    record |= job.facts | {
        "parameters": job.values | record.get("parameters", {}),
        "notebook": job.notebook.stem,
        "state": outcome.state,
        "exit_code": outcome.exit_code,
        "outputs": _list_outputs(job.folder),
    }
    if outcome.error:
        record["error"] = outcome.error
    if outcome.state != "done" or "finished" not in record:
        record["seconds"] = outcome.seconds
        record["finished"] = time.strftime(_STAMP)
    workspace.write_json(path, record)
    repair_notebook(job, outcome)


def _list_outputs(folder: Path) -> list[str]:
    own = {"run.json", "runner.log", "progress.jsonl"}
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and path.name not in own and not path.name.startswith(".")
    )


def repair_notebook(job: Job, outcome: Outcome) -> None:
    """Make the executed notebook show how the run ended.

    A banner on top when it did not end well; statuses that the last save missed.
    """
    saved = job.target if job.target.exists() else job.notebook
    notebook = parameters.read_notebook(saved)
    notebook["metadata"]["sketch"] = {"state": outcome.state, "error": outcome.error}
    if outcome.state != "done":
        failed = outcome.error["cell"] if outcome.error else ""
        _mend_statuses(notebook["cells"], failed)
        notebook["metadata"].setdefault("papermill", {})["exception"] = True
        notebook["cells"].insert(0, _make_banner(outcome))
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    workspace.write_text(job.target, text + "\n")


def _mend_statuses(cells: Sequence[dict[str, Any]], failed: str) -> None:
    """What came before the failed cell ran; a cell still called running failed."""
    places = [place for place, cell in enumerate(cells) if cell.get("id") == failed]
    for place, cell in enumerate(cells):
        facts = cell["metadata"].setdefault("papermill", {})
        if places and place < places[0]:
            facts["status"] = "completed"
        elif place in places or facts.get("status") == "running":
            facts |= {"status": "failed", "exception": True}


def _make_banner(outcome: Outcome) -> dict[str, Any]:
    """A Markdown cell that says how the run ended; text from data is escaped."""
    error = outcome.error or {"cell": "", "name": "", "message": ""}
    where = f" in cell <code>{html.escape(error['cell'])}</code>" * bool(error["cell"])
    what = html.escape(f"{error['name']}: {error['message']}")
    text = (
        f'<div class="run-state"><strong>This run did not finish: {outcome.state}'
        f"</strong>{where} after {outcome.seconds:g} s.<br>{what}</div>"
    )
    metadata = {"tags": [BANNER_TAG]}
    return {
        "cell_type": "markdown",
        "id": "run-state",
        "metadata": metadata,
        "source": text,
    }


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
    alive = [_is_alive(int(pid), str(stamp)) for pid, stamp in wrote if pid]
    return state if any(alive) else "killed"


def _is_alive(pid: int, stamp: str = "") -> bool:
    """Whether the process runs that had this number when it wrote `stamp`."""
    if stamp and _is_younger(pid, stamp):
        return False  # its number was given to another
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _read_stat(pid)[:1] not in (["Z"], ["X"])  # dead, not yet collected


def _read_stat(pid: int) -> list[str]:
    """The facts of a process, its state first; empty where the system tells none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_younger(pid: int, stamp: str) -> bool:
    """Whether the process was started after `stamp` (Linux; elsewhere not known)."""
    try:
        written = datetime.datetime.strptime(stamp, _STAMP).timestamp()
        ticks = _read_stat(pid)[19]
        lines = Path("/proc/stat").read_text().splitlines()
    except (OSError, ValueError, IndexError):
        return False
    booted = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    return booted + int(ticks) / os.sysconf("SC_CLK_TCK") > written + _SLACK
