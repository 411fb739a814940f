"""Start-up and notebook overhead: `python benchmarks/startup.py`.

Prints the seconds of `import sketchlib`, `sketch --help`, and an empty notebook run by
`sketch run`, by plain papermill and as a bare script, each the median of several runs
in turn, with the spread. Goals: import under 0.2 s, help under 0.5 s, `sketch run` at
most 5 s more than the bare script. Limits: a busy machine slows all of them.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from table import limit_row, write_rows

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"import sketchlib": 0.2, "sketch --help": 0.5, "sketch run − bare script": 5.0}
PARAMETERS = 'runs_dir: str = "runs"  # place\nrun_name: str = "empty"  # folder\n'
SETUP = (
    "from sketchlib import workspace\nrun = workspace.open_run(runs_dir, run_name, {})"
)
FINISH = "run.finish()"


def write_notebook(path: Path) -> None:
    """The smallest notebook that makes a run."""
    sources = {"parameters": PARAMETERS, "setup": SETUP, "finish": FINISH}
    cells = [
        {"cell_type": "code", "id": name, "source": source, "outputs": []}
        | {"execution_count": None}
        | {"metadata": {"tags": ["parameters"]} if name == "parameters" else {}}
        for name, source in sources.items()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "cells": cells}
    path.write_text(json.dumps(notebook | {"metadata": {"kernelspec": kernel}}))


def time_command(*command: str) -> float:
    """Seconds of one command, which must succeed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def make_commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """What is timed; the Python interpreter alone is the ground of the imports."""
    notebook, script = folder / "99_empty.ipynb", folder / "bare.py"
    write_notebook(notebook)
    script.write_text("\n".join([PARAMETERS, SETUP, FINISH]))
    python, sketch = sys.executable, ("-m", "sketchlib.workbook.cli")
    runs = str(folder / "runs")
    return {
        "python alone": (python, "-c", ""),
        "python, import sketchlib": (python, "-c", "import sketchlib"),
        "sketch --help": (python, *sketch, "--help"),
        "bare script": (python, str(script)),
        "plain papermill": (
            *(python, "-m", "papermill", str(notebook), str(folder / "out.ipynb")),
            *("-p", "runs_dir", runs, "--no-progress-bar"),
        ),
        "sketch run": (python, *sketch, "run", str(notebook), "--runs", runs),
    }


def main() -> int:
    """Measure and print the table; the exit code is 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    if importlib.util.find_spec("papermill") is None:
        print("benchmarks/startup.py needs papermill: `make setup` first")
        return 2
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        commands = make_commands(Path(place))
        taken = {name: [] for name in commands}
        for _ in range(rounds + 1):  # the first warms the file cache
            for name, command in commands.items():
                taken[name].append(time_command(*command))
        os.chdir(ROOT)
    pairs = {name: values[1:] for name, values in taken.items()}
    differences = {
        "import sketchlib": ("python, import sketchlib", "python alone"),
        "sketch run − bare script": ("sketch run", "bare script"),
        "sketch run − papermill": ("sketch run", "plain papermill"),
    }
    for name, (more, less) in differences.items():
        pairs[name] = [a - b for a, b in zip(pairs[more], pairs[less], strict=True)]
    missed = 0
    print(f"{'':<28}{'median s':>9}  {'range':<16}goal")
    for name, values in pairs.items():
        middle, goal = statistics.median(values), GOALS.get(name)
        missed += goal is not None and middle > goal
        told = "" if goal is None else f"≤ {goal:g}" + " MISSED" * (middle > goal)
        spread = f"{min(values):.2f} – {max(values):.2f}"
        print(f"{name:<28}{middle:>9.2f}  {spread:<16}{told}")
    write(pairs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    print(f"{cores or os.cpu_count()} cores, Python {sys.version.split()[0]}")
    return int(missed > 0)


def write(pairs: dict[str, list[float]]) -> None:
    """Lines of the common table for what has a goal."""
    lines = [
        limit_row(f"h. {name}", pairs[name], "s", goal) for name, goal in GOALS.items()
    ]
    write_rows("startup", lines)


if __name__ == "__main__":
    sys.exit(main())
