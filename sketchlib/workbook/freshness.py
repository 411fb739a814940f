"""Is a plan's step still valid? What its result depends on, and what of it changed.

A step is skipped when its run is done and its fingerprint is the same: parameters,
notebook, library sources, the CSV files of data_dir (name, size, time), and what it
needs. Limits: pictures changed in place under an unchanged CSV are not noticed.
"""

from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import folders, parameters
from sketchlib.workbook.jobs import Job
from sketchlib.workbook.plan import Step

_PLACES = ("runs_dir", "run_name", "data_dir")  # say where, not what


def make_fingerprint(step: Step, upstream: dict[str, str]) -> dict[str, Any]:
    """Everything the step's result depends on, in parts that can be named.

    Args:
        step: the step.
        upstream: for each run it needs, when that finished.
    """
    job = step.job
    return {
        "parameters": {k: v for k, v in job.values.items() if k not in _PLACES},
        "notebook": hash_notebook(job.notebook),
        "code": hash_library(),
        "data": hash_data(job),
        "needs": upstream,
    }


def hash_notebook(path: Path) -> str:
    """Hash of the cells' sources, so that opening it in JupyterLab changes nothing."""
    cells = parameters.read_notebook(path)["cells"]
    return workspace.hash_value([(c["cell_type"], c["source"]) for c in cells])


def hash_library() -> str:
    """Hash of our sources, without this room: a page's look changes no number."""
    root = Path(workspace.__file__).parent
    sources = sorted(root.rglob("*.py"))
    return workspace.hash_files([p for p in sources if p.parent != root / "workbook"])


def hash_data(job: Job) -> str:
    """Hash of name, size and time of the data folder's CSV files and the verdicts."""
    if not job.values.get("data_dir"):
        return ""
    from sketchlib.data import decisions  # pandas: half a second that --help need not

    folder = workspace.resolve_path(str(job.values["data_dir"]))
    found = sorted(folder.glob("*.csv")) or sorted(folder.glob("[!.]*"))
    verdicts = decisions.find_path(folder)
    found += [verdicts] if verdicts.exists() else []
    facts = [(path.name, path.stat()) for path in found]
    return workspace.hash_value([(n, s.st_size, s.st_mtime_ns) for n, s in facts])


def explain_run(step: Step, upstream: dict[str, str]) -> str:
    """Why the step must run; empty when its run is done and still valid."""
    folder = step.job.folder
    if not (folder / "run.json").exists():
        return "missing"
    try:
        record = workspace.read_json(folder / "run.json")
    except ValueError:
        return "its run.json cannot be read"
    state = folders.read_state(record)
    if state != "done":
        return f"last time {state}" if state != "running" else "still running"
    stored = record.get("fingerprint")
    if not stored:
        return "not run by a plan before"
    gone = [n for n in record.get("outputs", []) if not (folder / n).exists()]
    if gone:
        return f"{gone[0]} is gone"
    return _compare(stored, make_fingerprint(step, upstream))


def _compare(stored: dict[str, Any], current: dict[str, Any]) -> str:
    """What differs between two fingerprints, the most telling first."""
    before, now = stored.get("parameters", {}), current["parameters"]
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    if names:
        told = ", ".join(f"{n} {before.get(n)} → {now.get(n)}" for n in names[:3])
        return f"parameters changed: {told}" + ", …" * (len(names) > 3)
    for part in ("data", "notebook", "code"):
        if stored.get(part) != current[part]:
            return f"{part} changed"
    for need, finished in current["needs"].items():
        if stored.get("needs", {}).get(need) != finished:
            return f"upstream {need} ran again"
    return "" if stored == current else "what it needs changed"


def read_finished(step: Step) -> str:
    """When the step's run ended, to the second, and the hash of what it depended on."""
    path = step.job.folder / "run.json"
    if not path.exists():
        return ""
    try:
        record = workspace.read_json(path)
    except ValueError:
        return ""
    depended = workspace.hash_value(record.get("fingerprint"))
    return f"{record.get('finished', '')} {depended}"
