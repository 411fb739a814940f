"""A plan whose whole process tree is killed, again and again, ends as if it had not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import PARAMETERS, write_notebook

from sketchlib import workspace
from sketchlib.workbook import folders, report

LIBRARY = str(Path(workspace.__file__).parents[1])
PLAN = """\
title: Six small steps
parameters: {data_dir: data}
steps:
  - {name: a, notebook: 01_count}
  - {name: b, notebook: 01_count, needs: [a]}
  - {name: c, notebook: 01_count, needs: [a], parameters: {epochs: 2}}
  - {name: d, notebook: 01_count, needs: [b, c]}
  - {name: e, notebook: 01_count, needs: [d]}
  - {name: last, notebook: 01_count, needs: [e]}
"""
COUNT = """\
import time
path = run.dir / "count.txt"
for step in range(int(path.read_text() or 0) if path.exists() else 0, 3 * epochs):
    time.sleep(0.1)
    workspace.write_text(path, str(step + 1))
if run_name == "last":
    text = "".join(f"{p.parent.name},{p.read_text()}\\n"
                   for p in sorted(run.dir.parent.glob("*/count.txt")))
    workspace.write_text(run.dir.parent / "submission.csv", text)"""


def list_tree(pid):
    """The process and everything below it, kernels in sessions of their own too."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(
                entry.read_text().rpartition(")")[2].split()[1]
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
    tree, size = {pid}, 0
    while len(tree) > size:
        size = len(tree)
        tree |= {child for child, parent in parents.items() if parent in tree}
    return tree


def kill_tree(process):
    """SIGKILL to all of it at once: each is stopped first, so that none reacts."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        tree = list_tree(process.pid)
        for pid in tree:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
    process.wait()
    while any(folders.is_alive(pid) for pid in tree):  # a busy machine takes a moment
        time.sleep(0.05)


def start(plan, folder, *arguments):
    command = [sys.executable, "-m", "sketchlib.workbook.cli", "workbook", str(plan)]
    return subprocess.Popen(
        [*command, "--runs", str(folder), *arguments],
        env=os.environ | {"PYTHONPATH": LIBRARY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(plan, folder, *arguments):
    """Run to the end; returns the seconds it took."""
    started = time.monotonic()
    process = start(plan, folder, *arguments)
    _, error = process.communicate()
    assert process.returncode == 0, error
    return time.monotonic() - started


def kill_often(plan, folder, moments, *arguments):
    """Kill the tree after each number of seconds; returns how many struck."""
    struck = 0
    for seconds in moments:
        process = start(plan, folder, *arguments)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill_tree(process)
            struck += 1
        states = [folders.read_state(record) for _, record in report.read_runs(folder)]
        assert not {"running", "queued"} & set(states), states
    return struck


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "notebooks" / "01_count.ipynb"
    write_notebook(path, [("run", COUNT)], parameters=PARAMETERS)
    (tmp_path / "data").mkdir()
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def test_a_plan_killed_twice_ends_like_an_undisturbed_one(root):
    assert kill_often("plan.yaml", root / "runs", [4, 8]) == 2
    finish("plan.yaml", root / "runs", "--jobs", "2")
    counts = "a,9\nb,9\nc,6\nd,9\ne,9\nlast,9\n"
    assert (root / "runs" / "submission.csv").read_text() == counts
    for _, record in report.read_runs(root / "runs"):
        assert record["state"] == "done"
        assert "error" not in record


@pytest.mark.slow
def test_the_workbook_killed_ten_times_submits_the_same(world, tmp_path):
    plan = Path(LIBRARY) / "params" / "workbooks" / "smoke.yaml"
    asked = ["-p", "data_dir", str(world)]
    seconds = finish(plan, tmp_path / "calm", *asked)
    chance = random.Random(7)
    moments = [chance.uniform(0.02, 0.3) * seconds for _ in range(10)]
    assert kill_often(plan, tmp_path / "killed", moments, *asked) == 10
    finish(plan, tmp_path / "killed", *asked)
    calm, killed = (
        (tmp_path / name / "submission.csv").read_bytes() for name in ("calm", "killed")
    )
    assert calm == killed
    states = [record["state"] for _, record in report.read_runs(tmp_path / "killed")]
    assert states == ["done"] * 6
