"""Faults 25-36: parameters and runner, on toy notebooks."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from toys import PARAMETERS, read_cells, read_text, write_notebook

from sketchlib import workspace
from sketchlib.workbook import (
    cli,
    display,
    folders,
    jobs,
    parameters,
    report,
    runner,
)

ORPHAN = """\
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                          start_new_session=True)
(run.dir / "worker.pid").write_text(str(worker.pid))
(run.dir / "last.pt").write_bytes(b"checkpoint")
"""
SLEEP = ORPHAN + "import time; time.sleep(600)"


def make_job(folder, cells, timeout=0.0, **overrides):
    notebook = write_notebook(folder / "99_toy.ipynb", cells)
    values = {"runs_dir": str(folder / "runs"), **overrides}
    return jobs.make_job(notebook, values, timeout=timeout)


def run_quietly(job):
    return runner.run_notebook(job, display.Display(job.folder.name, io.StringIO()))


def read_statuses(job):
    cells = read_cells(job.target)
    return [
        cells[name]["metadata"]["papermill"]["status"]
        for name in ("setup", "run", "finish")
    ]


def is_gone(pid):
    """A killed orphan may linger as a zombie until init collects it."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def start_sketch(folder, *arguments):
    command = [sys.executable, "-m", "sketchlib.workbook.cli", "run", *arguments]
    root = str(Path(workspace.__file__).parents[1])
    return subprocess.Popen(
        [*command, "--runs", str(folder / "runs")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root},
    )


def wait_for(path, seconds=30):
    for _ in range(int(seconds * 20)):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


# --- 25, 27, 35: before the kernel ------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("epoch", "3", "did you mean `epochs`"),
        ("epochs", "-1", "must be ≥ 1"),
        ("epochs", "2.5", "a whole number"),
        ("lr", "nan", "a finite number"),
        ("lr", "inf", "a finite number"),
        ("flip", "maybe", "true or false"),
        ("folds", "[0", "a flat list"),
        ("recipe", "pne", "did you mean `pen`"),
    ],
)
def test_f25_a_wrong_parameter_is_one_sentence_and_exit_2(
    tmp_path, capsys, name, value, told
):
    notebook = write_notebook(tmp_path / "99_toy.ipynb")
    started = time.perf_counter()
    runs = str(tmp_path / "runs")
    code = cli.main(["run", str(notebook), "-p", name, value, "--runs", runs])
    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
    assert time.perf_counter() - started < 1
    assert not (tmp_path / "runs").exists()


def test_f25_texts_are_read_as_meant(tmp_path):
    notebook = write_notebook(tmp_path / "99_toy.ipynb")
    (tmp_path / "x.yaml").write_text("lr: 1e-3\n")
    pairs = [("flip", "true"), ("folds", "[1,2]")]
    asked = jobs.collect_overrides(notebook, [str(tmp_path / "x.yaml")], pairs)
    assert asked == {"lr": 0.001, "flip": True, "folds": [1, 2]}


def test_f27_a_notebook_without_kernel_or_parameters_is_refused(tmp_path, capsys):
    bare = write_notebook(tmp_path / "bare.ipynb", kernel=0)
    untagged = write_notebook(tmp_path / "untagged.ipynb", tag="")
    for notebook, told in ((bare, "kernelspec"), (untagged, "tagged `parameters`")):
        assert cli.main(["run", str(notebook)]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert notebook.name in error


@pytest.mark.parametrize("name", ["hf_token", "api_key", "password"])
def test_f35_a_secret_is_refused_with_an_environment_variable(tmp_path, capsys, name):
    notebook = write_notebook(tmp_path / "99_toy.ipynb")
    assert cli.main(["run", str(notebook), "-p", name, "hunter2"]) == 2
    error = capsys.readouterr().err
    assert f"environment variable ({name.upper()})" in error
    assert "hunter2" not in error


# --- 26: paths --------------------------------------------------------------


def test_f26_braces_spaces_and_hangul_in_paths_work(tmp_path):
    folder = tmp_path / "드로잉 {x} 100%"
    job = make_job(folder, [], run_name="첫 번째 실험")
    assert run_quietly(job).state == "done"
    assert job.target.exists()
    assert "첫 번째 실험" in job.target.with_suffix(".html").read_text("utf-8")
    page = report.write_index(job.folder.parent).read_text("utf-8")
    assert "%EC%B2%AB" in page


# --- 28-31: ends ------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    die = "import os\nif not (run.dir / 'last.pt').exists():\n"
    die += "".join(f"    {line}\n" for line in ORPHAN.splitlines())
    die += "    os.kill(os.getpid(), 9)\nprint('resumed')"
    job = make_job(folder, [("run", die)])
    return job, run_quietly(job), read_statuses(job), read_cells(job.target)


def test_f28_a_killed_kernel_is_told_in_state_notebook_and_exit_code(killed):
    job, outcome, statuses, cells = killed
    assert (outcome.state, outcome.exit_code) == ("killed", 137)
    assert "in cell `run`" in outcome.message
    assert "memory ran out" in outcome.message
    assert statuses == ["completed", "failed", "pending"]
    assert "killed" in cells["run-state"]["source"]


def test_f28_workers_of_a_killed_kernel_are_gone_and_a_new_run_resumes(killed):
    job = killed[0]
    assert is_gone(int((job.folder / "worker.pid").read_text()))
    assert run_quietly(job).state == "done"
    cells = read_cells(job.target)
    assert "resumed" in read_text(cells["run"])
    assert "run-state" not in cells
    assert "error" not in workspace.read_json(job.folder / "run.json")


def test_f28_a_killed_child_is_told_too_and_its_kernel_is_gone(tmp_path):
    die = ORPHAN + "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(600)"
    job = make_job(tmp_path, [("run", die)])
    outcome = run_quietly(job)
    assert (outcome.state, outcome.exit_code) == ("killed", 137)
    assert "in cell `run`" in outcome.message
    assert read_statuses(job) == ["completed", "failed", "pending"]
    assert is_gone(workspace.read_json(job.folder / "run.json")["pid"])
    assert is_gone(int((job.folder / "worker.pid").read_text()))


def test_f29_a_time_out_ends_the_run_and_its_children_and_keeps_the_checkpoint(
    tmp_path,
):
    job = make_job(tmp_path, [("run", SLEEP)], timeout=10.0)
    outcome = run_quietly(job)
    assert (outcome.state, outcome.exit_code) == ("timeout", 124)
    assert "limit of 10 s" in outcome.message
    assert (job.folder / "last.pt").read_bytes() == b"checkpoint"
    assert is_gone(int((job.folder / "worker.pid").read_text()))
    assert workspace.read_json(job.folder / "run.json")["state"] == "timeout"
    assert read_statuses(job) == ["completed", "failed", "pending"]


def test_f29_a_cell_that_ignores_the_interrupt_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 1.0)
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    job = make_job(tmp_path, [("run", deaf + SLEEP.replace("600", "60"))], timeout=10.0)
    outcome = run_quietly(job)
    assert (outcome.state, outcome.exit_code) == ("timeout", 124)
    assert outcome.seconds < 30
    assert is_gone(int((job.folder / "worker.pid").read_text()))
    assert read_statuses(job)[1:] == ["failed", "pending"]
    assert "timeout" in read_cells(job.target)["run-state"]["source"]


def test_f30_leaving_early_is_incomplete_and_not_success(tmp_path):
    job = make_job(tmp_path, [("run", "import sys; sys.exit(0)")])
    outcome = run_quietly(job)
    assert (outcome.state, outcome.exit_code) == ("incomplete", 1)
    assert workspace.read_json(job.folder / "run.json")["state"] == "incomplete"
    assert read_statuses(job)[2] == "pending"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_f31_an_interrupt_saves_says_so_and_leaves_no_orphan(tmp_path, number):
    write_notebook(tmp_path / "99_toy.ipynb", [("run", SLEEP)])
    process = start_sketch(tmp_path, "99_toy.ipynb")
    folder = tmp_path / "runs" / "toy"
    worker = wait_for(folder / "worker.pid")
    kernel = workspace.read_json(folder / "run.json")["pid"]
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted in cell `run`" in error
    assert "Traceback" not in error
    assert is_gone(int(worker))
    assert is_gone(kernel)
    assert (folder / "last.pt").read_bytes() == b"checkpoint"
    assert workspace.read_json(folder / "run.json")["state"] == "interrupted"
    assert "KeyboardInterrupt" in json.dumps(read_cells(folder / "99_toy.ipynb")["run"])
    assert (folder / "99_toy.html").exists()


def test_f31_a_killed_runner_takes_its_kernel_along_and_the_record_says_so(
    tmp_path, monkeypatch
):
    scratch = Path(tempfile.mkdtemp(prefix="t-"))
    monkeypatch.setenv("TMPDIR", str(scratch))
    write_notebook(tmp_path / "99_toy.ipynb", [("run", SLEEP)])
    process = start_sketch(tmp_path, "99_toy.ipynb")
    folder = tmp_path / "runs" / "toy"
    worker = wait_for(folder / "worker.pid")
    kernel = workspace.read_json(folder / "run.json")["pid"]
    process.kill()
    process.communicate(timeout=30)
    assert is_gone(int(worker))
    assert is_gone(kernel)
    assert folders.read_state(workspace.read_json(folder / "run.json")) == "killed"
    write_notebook(tmp_path / "99_toy.ipynb")
    again = start_sketch(tmp_path, "99_toy.ipynb")  # while the first still closes
    _, error = again.communicate(timeout=60)
    assert (again.returncode, error) == (0, "")
    assert list(scratch.iterdir()) == []
    scratch.rmdir()


# --- 32: a full disk --------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.fixture
def manager(tmp_path):
    from sketchlib.workbook import engine

    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(write_notebook(tmp_path / "x.ipynb"), as_version=4)
    notebook.metadata["papermill"] = {}
    told = []
    teller = engine.Teller(pipe=-1)
    teller.tell = lambda event, **facts: told.append((event, facts))
    made = engine.Manager(notebook, tmp_path / "out.ipynb", teller)
    made.told = told
    return made


def test_f32_a_full_disk_keeps_the_last_good_notebook_and_the_run(
    manager, request, tmp_path
):
    manager.write()
    before = (tmp_path / "out.ipynb").read_bytes()
    manager.nb.cells[0].source = "changed"
    request.getfixturevalue("full_disk")
    manager.save()
    assert manager.told[0][0] == "warning"
    with pytest.raises(OSError, match=r"bytes are needed") as full:
        manager.write()
    assert full.value.errno == errno.ENOSPC
    assert (tmp_path / "out.ipynb").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb", "x.ipynb"]


def test_f32_a_full_disk_keeps_the_last_good_record_and_page(full_disk, tmp_path):
    (tmp_path / "run.json").write_text('{"state": "done"}')
    with pytest.raises(OSError, match="bytes are free.*previous file was kept"):
        workspace.write_json(tmp_path / "run.json", {"state": "running"})
    assert workspace.read_json(tmp_path / "run.json") == {"state": "done"}


FILL = """\
workspace.write_text(run.dir / "last.pt", "good")
run.log(epoch=1)
with (run.dir / "filler").open("wb", buffering=0) as out:
    try:
        while True:
            out.write(bytes(512))
    except OSError:
        pass
if (run.dir.parent / "metrics").exists():
    run.log(epoch=2, text="x" * 100_000)
workspace.write_text(run.dir / "last.pt", "x" * 100_000)"""


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_f32_on_a_disk_that_is_really_full_nothing_good_is_lost(
    small_disk, tmp_path, what
):
    write_notebook(tmp_path / "99_toy.ipynb", [("run", FILL)])
    (small_disk / "runs").mkdir()
    if what == "metrics":
        (small_disk / "runs" / "metrics").mkdir()
    process = start_sketch(small_disk, str(tmp_path / "99_toy.ipynb"))
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "bytes" in error
    assert "Traceback" not in error
    folder = small_disk / "runs" / "toy"
    assert (folder / "last.pt").read_text() == "good"
    assert workspace.read_jsonl(folder / "metrics.jsonl") == [{"epoch": 1}]
    state = folders.read_state(workspace.read_json(folder / "run.json"))
    assert state in ("failed", "killed")
    json.loads((folder / "99_toy.ipynb").read_text())
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == [".lock"]
    (folder / "filler").unlink()
    write_notebook(tmp_path / "99_toy.ipynb")
    again = start_sketch(small_disk, str(tmp_path / "99_toy.ipynb"))
    _, error = again.communicate(timeout=120)
    assert (again.returncode, error) == (0, "")


def test_f32_a_line_cut_by_a_full_disk_costs_that_line_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    workspace.append_jsonl(path, {"epoch": 1})
    with path.open("a") as out:
        out.write('{"epoch": 2, "acc')
    workspace.append_jsonl(path, {"epoch": 3})
    assert [row["epoch"] for row in workspace.read_jsonl(path)] == [1, 3]


# --- 33: at the same time ---------------------------------------------------


def test_f33_a_second_run_of_the_same_name_is_refused(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "99_toy.ipynb")
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(json.dumps({"pid": 4321, "host": "here", "started": "now"}))
        held.flush()
        code = cli.main(["run", str(notebook), "--runs", str(tmp_path / "runs")])
    assert code == 2
    assert "process 4321 on here" in capsys.readouterr().err


def run_together(folder, count):
    notebook = write_notebook(folder / "99_toy.ipynb", [("run", "print(run_name)")])
    made = [
        jobs.make_job(
            notebook, {"runs_dir": str(folder / "runs"), "run_name": f"r{number}"}
        )
        for number in range(count)
    ]
    threads = [threading.Thread(target=run_quietly, args=(job,)) for job in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_f33_runs_at_once_do_not_disturb_each_other(tmp_path, count):
    for job in run_together(tmp_path, count):
        assert workspace.read_json(job.folder / "run.json")["state"] == "done"
        assert read_text(read_cells(job.target)["run"]).strip() == job.folder.name


# --- 34: nowhere to write ---------------------------------------------------


def test_f34_a_run_needs_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere" / "home"))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert run_quietly(make_job(tmp_path, [])).state == "done"
    assert not (tmp_path / "nowhere").exists()


def test_f34_a_runs_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "99_toy.ipynb")
    (tmp_path / "runs").write_text("a file, not a folder")
    code = cli.main(["run", str(notebook), "--runs", str(tmp_path / "runs")])
    error = capsys.readouterr().err
    assert code == 2
    assert "cannot be written" in error
    assert "--runs DIR" in error


# --- 36: floods -------------------------------------------------------------


def check_flood(folder, megabytes, figures):
    flood = (
        "from IPython.display import HTML, display\n"
        f"for _ in range({megabytes}): print('x' * 1_000_000)\n"
        f"for number in range({figures}): display(HTML(f'<p>figure {{number}}</p>'))"
    )
    job = make_job(folder, [("run", flood)])
    assert run_quietly(job).state == "done"
    outputs = read_cells(job.target)["run"]["outputs"]
    notices = [text for text in map(str, outputs) if "sketch run left out" in text]
    assert len(notices) == 1
    rich = [out for out in outputs if out["output_type"] == "display_data"]
    assert len(rich) == 300
    assert job.target.stat().st_size < 3e6
    assert job.target.with_suffix(".html").stat().st_size < 3e6


def test_f36_a_flood_of_output_is_capped_with_a_notice(tmp_path):
    check_flood(tmp_path, 5, 400)


@pytest.mark.slow
def test_f36_a_hundred_megabytes_and_ten_thousand_figures(tmp_path):
    check_flood(tmp_path, 100, 10_000)


def test_f25_every_toy_rule_holds_for_its_own_defaults():
    schema = parameters.parse_cell(PARAMETERS, "toy")
    defaults = {name: known.default for name, known in schema.items()}
    assert parameters.check_overrides(schema, defaults, "defaults") == defaults
