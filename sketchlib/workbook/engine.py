"""The child process of a run: one notebook on papermill, each event told at once.

`python -m sketchlib.workbook.engine JOB.json` is started by `runner`, one process a
run, so that memory does not grow over a plan and a kill can be told from an error.
papermill injects the parameters and walks the cells; through its engine interface
we add what it lacks: statuses that stay true when the kernel dies, atomic
saves, a private kernel transport, a limit on what a cell may print. Standard input
is a lifeline: when the runner is gone, the kernel is ended and the run marked.
Limits: POSIX only; sweeping up detached grandchildren needs Linux's /proc.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import report, runner

report.skip_uri_grammar()

import nbformat  # noqa: E402
import papermill  # noqa: E402
from nbclient.exceptions import CellExecutionError, DeadKernelError  # noqa: E402
from papermill import engines, utils  # noqa: E402
from papermill.clientwrap import PapermillNotebookClient  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402
from traitlets.config import Config  # noqa: E402

_QUIET = {"parameters", "injected-parameters"}  # cells not worth a progress line
_SAVE_SHARE = 20  # a save that took t seconds is not repeated within 20 t
_TEXT_LIMIT = 1_000_000  # characters one cell may print
_RICH_LIMIT = 30_000_000  # characters of figures and tables in one cell
_RICH_COUNT = 300  # figures and tables in one cell


@dataclasses.dataclass
class Teller:
    """Sends events to the runner, one JSON line each, and remembers the kernel."""

    pipe: int
    kernel: int = 0

    def tell(self, event: str, **facts: Any) -> None:
        """Send one event; a runner that is gone is the lifeline's business."""
        if event == "kernel":
            self.kernel = facts["pid"]
        line = json.dumps({"event": event, **facts}, ensure_ascii=False) + "\n"
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipe, line.encode())


class Manager(engines.NotebookExecutionManager):
    """papermill's bookkeeping, with atomic saves and statuses left as they are."""

    def __init__(self, nb: Any, target: Path, teller: Teller) -> None:
        super().__init__(nb, progress_bar=False)
        self.target, self.teller = target, teller
        self._saved = self._cost = 0.0

    def save(self, **_: Any) -> None:
        """Write the notebook if that costs little; a full disk is told, not fatal."""
        started = time.monotonic()
        if started - self._saved < _SAVE_SHARE * self._cost:
            return
        try:
            self.write()
        except OSError as error:
            self.teller.tell("warning", text=str(error))
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def write(self) -> None:
        """Write the notebook, whole or not at all."""
        text = nbformat.writes(self.nb)
        try:
            workspace.write_text(self.target, text)
        except OSError as error:
            needed = f"{error.strerror} ({len(text.encode()):,} bytes are needed)"
            raise OSError(error.errno, needed) from error

    def autosave_cell(self, **_: Any) -> None:
        """Save while a cell talks, every `autosave_cell_every` seconds."""
        if time.monotonic() - self._saved >= self.autosave_cell_every:
            self.save()

    def cell_start(self, cell: Any, cell_index: int | None = None, **_: Any) -> None:
        """Tell which cell starts, so that the runner knows where a kill struck."""
        self.teller.tell("start", id=cell.get("id", ""))
        super().cell_start(cell, cell_index=cell_index)

    def cell_complete(self, cell: Any, cell_index: int | None = None, **_: Any) -> None:
        """Note the cell's end and tell it."""
        super().cell_complete(cell, cell_index=cell_index)
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and not _QUIET & set(tags):
            self.teller.tell(
                "cell",
                id=cell.get("id", ""),
                index=cell_index,
                total=len(self.nb.cells),
                status=cell.metadata.papermill["status"],
                seconds=cell.metadata.papermill["duration"],
            )

    def notebook_complete(self, **_: Any) -> None:
        """Stamp the end; unlike papermill, call nothing completed that did not run."""
        self.end_time = self.now()
        facts = self.nb.metadata.papermill
        facts["end_time"] = self.end_time.isoformat()
        facts["duration"] = (self.end_time - self.start_time).total_seconds()
        self.write()


class Client(PapermillNotebookClient):
    """papermill's client, honest about a dead kernel and bounded in what it keeps."""

    def __init__(self, manager: Manager, **traits: Any) -> None:
        super().__init__(manager, raise_on_iopub_timeout=False, **traits)
        self._kept: dict[int, list[int]] = {}  # cell → characters, rich, pieces
        self._notices: dict[int, Any] = {}
        self._dropped: dict[int, int] = {}

    def papermill_execute_cells(self) -> None:
        """Run the cells until one fails; mark that one failed, whatever the cause."""
        self.nb_man.teller.tell("kernel", pid=self.km.provisioner.pid)
        for index, cell in enumerate(self.nb.cells):
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
            except CellExecutionError:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index)
                break
            except DeadKernelError:
                self.nb_man.cell_exception(self.nb.cells[index], cell_index=index)
                raise
            finally:
                self.nb_man.cell_complete(self.nb.cells[index], cell_index=index)

    def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
        """Keep an output unless the cell has said enough; then count what is left."""
        size, rich = _measure(msg)
        kept = self._kept.setdefault(cell_index, [0, 0, 0])
        full = kept[1] + size > _RICH_LIMIT or kept[2] >= _RICH_COUNT
        if full if rich else kept[0] + size > _TEXT_LIMIT:
            return self._leave_out(outs, cell_index, size)
        kept[rich] += size
        kept[2] += rich
        return super().output(outs, msg, display_id, cell_index)

    def clear_output(self, outs: Any, msg: Any, cell_index: int) -> None:
        """Forget what was cleared, so that a redrawn display stays within bounds."""
        self._kept.pop(cell_index, None)
        self._notices.pop(cell_index, None)
        super().clear_output(outs, msg, cell_index)

    def _leave_out(self, outs: Any, cell_index: int, size: int) -> None:
        dropped = self._dropped[cell_index] = self._dropped.get(cell_index, 0) + size
        if cell_index not in self._notices:
            self._notices[cell_index] = nbformat.v4.new_output("stream", name="stderr")
            outs.append(self._notices[cell_index])
        self._notices[cell_index].text = (
            f"\n[sketch run left out {dropped:,} characters of output here: a cell may "
            f"print {_TEXT_LIMIT:,} and show {_RICH_COUNT} figures; write the rest to "
            "a file in the run folder]\n"
        )


def _measure(msg: Any) -> tuple[int, bool]:
    """Characters in an output message, and whether it is rich (a figure, a table)."""
    content = msg["content"]
    if msg["msg_type"] == "stream":
        return len(content["text"]), False
    if msg["msg_type"] == "error":
        return 0, False
    return sum(len(str(value)) for value in content.get("data", {}).values()), True


class Engine:
    """What papermill calls to execute a notebook: our client, our manager."""

    def __init__(self, target: Path, scratch: Path, teller: Teller) -> None:
        self.target, self.scratch, self.teller = target, scratch, teller
        self.nb: Any = None

    def execute_notebook(self, nb: Any, kernel_name: str, **_: Any) -> Any:
        """Execute `nb` in a fresh kernel on a private socket."""
        self.nb = nb
        nb.metadata.papermill["output_path"] = str(self.target)
        manager = Manager(nb, self.target, self.teller)
        client = Client(
            manager,
            kernel_name=kernel_name,
            timeout=None,
            startup_timeout=120,
            iopub_timeout=60,
            coalesce_streams=True,
            store_widget_state=False,
            config=_private_transport(self.scratch),
        )
        manager.notebook_start()
        try:
            client.execute()
        finally:
            manager.notebook_complete()
        return nb

    def nb_kernel_name(self, nb: Any, name: str | None = None) -> str:
        """The kernel the notebook names."""
        return str(utils.nb_kernel_name(nb, name))

    def nb_language(self, nb: Any, language: str | None = None) -> str:
        """The language the notebook names; Python where it does not say."""
        nb.metadata.kernelspec.setdefault("language", "python")
        return str(utils.nb_language(nb, language))


def _private_transport(scratch: Path) -> Config:
    """Unix sockets in a folder of our own: no port clash, nobody else can connect."""
    connection = str(scratch / "kernel.json")  # holds the key that signs messages
    traits = {"transport": "ipc", "ip": str(scratch / "k")}
    return Config({"KernelManager": traits | {"connection_file": connection}})


# --- the process ------------------------------------------------------------


def main() -> int:
    """Execute the job whose file is the first argument."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    teller = Teller(job["pipe"])
    watch = threading.Thread(target=_watch_runner, args=(job, teller), daemon=True)
    watch.start()
    engine = Engine(Path(job["target"]), Path(job["scratch"]), teller)
    engines.papermill_engines.register("sketchbook", engine)
    teller.tell("end", **_execute(job, engine))
    return 0


def _execute(job: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """Run the notebook; how it ended, as the facts of the event `end`."""
    source = job["notebook"].replace("{", "{{").replace("}", "}}")
    try:
        papermill.execute_notebook(
            source,
            None,  # our manager writes, not papermill
            parameters=job["overrides"],
            engine_name="sketchbook",
            progress_bar=False,
            cwd=str(Path(job["notebook"]).parent),
        )
    except PapermillExecutionError as error:
        return _failure("failed", engine.nb, error.ename, error.evalue)
    except DeadKernelError:
        return _failure("killed", engine.nb, "DeadKernelError", "the kernel died")
    unfinished = [
        c for c in engine.nb.cells if c.metadata.papermill["status"] != "completed"
    ]
    if unfinished:
        return _failure(
            "incomplete", engine.nb, "SystemExit", "the notebook left early"
        )
    return {"state": "done"}


def _failure(state: str, nb: Any, name: str, message: str) -> dict[str, Any]:
    failed = [cell for cell in nb.cells if _read_status(cell) == "failed"]
    cell = failed[0].get("id", "") if failed else ""
    return {"state": state, "cell": cell, "name": name, "message": message}


def _read_status(cell: Any) -> str:
    """The cell's status; papermill's own marker cells have none."""
    return str(cell.metadata.get("papermill", {}).get("status", ""))


def _watch_runner(job: dict[str, Any], teller: Teller) -> None:
    """Wait for the runner to vanish; then say so in run.json and end the kernel."""
    os.read(0, 1)
    path = Path(job["target"]).parent / "run.json"
    with contextlib.suppress(OSError, ValueError):
        record = workspace.read_json(path)
        if record.get("state") in ("queued", "running"):
            lost = {"cell": "", "name": "Killed", "message": "`sketch run` was killed"}
            workspace.write_json(path, record | {"state": "killed", "error": lost})
    runner.end_processes(teller.kernel, job["mark"])
    shutil.rmtree(job["scratch"], ignore_errors=True)
    time.sleep(5)  # the main thread notices the dead kernel and saves the notebook
    os._exit(137)


if __name__ == "__main__":
    sys.exit(main())
