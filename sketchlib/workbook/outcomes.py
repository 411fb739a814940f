"""How a run ended: judged by what is left, and written where it is looked for.

papermill calls every cell of a killed kernel completed, so the end is judged from the
child's own words, its exit code and its log, and then written into `run.json` and the
executed notebook. Exit codes: 0 done, 1 notebook error, 2 bad input, 124 time-out,
130 interrupted, 137 killed. Limits: a killed kernel cannot say why.
"""

import dataclasses
import html
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import folders, parameters
from sketchlib.workbook.jobs import Job

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

_CHECK_CELLS = ("setup", "check")
_INPUT_ERRORS = ("ValueError", "FileNotFoundError", "KeyError")


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


@dataclasses.dataclass
class Ending:
    """What is known when the child is gone."""

    reason: str = ""  # "timeout" or "interrupted" when we ended it
    cell: str = ""  # the last cell that started
    facts: dict[str, Any] | None = None  # of the child's event `end`
    code: int = 0  # the child's exit code, negative for a signal


def judge(job: Job, ending: Ending, seconds: float) -> Outcome:
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


def _read_error(job: Job, ending: Ending) -> dict[str, str]:
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


def write_outcome(job: Job, outcome: Outcome) -> None:
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
    record["seconds"] = outcome.seconds  # with the start of Python and its imports
    if outcome.state != "done" or "finished" not in record:
        record["finished"] = time.strftime(folders.STAMP)
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
