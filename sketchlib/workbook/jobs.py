"""What is to be run: a notebook, its parameters checked, and where it goes.

Everything that can be known before a kernel starts is checked here: names, types,
ranges, and settings that contradict each other. Limits: what depends on the data is
checked by the notebook's own `check` cell.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sketchlib import workspace
from sketchlib.workbook import checks, parameters


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
            or `run_name` is not a folder name, or settings contradict each other.
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
    checks.check_values(values)
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
