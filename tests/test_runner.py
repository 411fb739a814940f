import fcntl
import io
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from toys import read_cells, read_text, write_notebook

from sketchlib import workspace
from sketchlib.workbook import display, folders, jobs, outcomes, runner

RUN = """\
import ipykernel, json, os
print(epochs, lr, flip, recipe, folds)
info = json.loads(ipykernel.get_connection_info())
print(info["transport"], oct(os.stat(os.path.dirname(info["ip"])).st_mode & 0o777))
print("socket", info["ip"])
path = run.dir / "progress.jsonl"
workspace.append_jsonl(path, {"text": "epoch 1/2", "fraction": 0.5, "seconds_left": 9})
(run.dir / "oof.npz").write_bytes(b"result")"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make_job(tmp_path, cells, **overrides):
    notebook = write_notebook(tmp_path / "99_toy.ipynb", cells)
    return jobs.make_job(notebook, {"runs_dir": str(tmp_path / "runs"), **overrides})


def run_quietly(job):
    screen = display.Display(job.folder.name, io.StringIO())
    return runner.run_notebook(job, screen), screen.out.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    earlier = folder / "runs" / "toy"
    earlier.mkdir(parents=True)
    (earlier / "fold0.pt").write_bytes(b"a checkpoint to resume from")
    (earlier / "progress.jsonl").write_text('{"text": "old"}\n')
    (earlier / "99_toy.html").write_text("old page")
    job = make_job(folder, [("run", RUN)], epochs=2, lr=0.01, flip=False, folds=[3])
    return job, *run_quietly(job)


def test_a_run_ends_done_with_notebook_page_and_record(done):
    job, outcome, _ = done
    record = workspace.read_json(job.folder / "run.json")
    assert (outcome.state, outcome.exit_code, outcome.message) == ("done", 0, "")
    assert (record["state"], record["exit_code"]) == ("done", 0)
    assert record["runner"]["pid"] == os.getpid()
    assert record["runner"]["host"] == socket.gethostname()
    assert record["notebook"] == "99_toy"
    assert record["scores"]["oof_accuracy"] == 0.9
    assert record["parameters"]["recipe"] == "pen"
    assert record["parameters"]["lr"] == 0.01
    assert record["seconds"] == outcome.seconds  # the kernel's start counted
    assert set(record["outputs"]) == {"99_toy.ipynb", "fold0.pt", "oof.npz"}
    assert "old page" not in (job.folder / "99_toy.html").read_text()


def test_the_notebook_sees_the_values_asked_for(done):
    text = read_text(read_cells(done[0].target)["run"])
    assert text.startswith("2 0.01 False pen [3]\n")


def test_the_kernel_talks_over_a_private_socket_that_is_gone_afterwards(done):
    text = read_text(read_cells(done[0].target)["run"])
    assert "ipc 0o700\n" in text
    assert not os.path.exists(os.path.dirname(text.split("socket ")[1].strip()))
    assert "TCP" not in (done[0].folder / "runner.log").read_text()


def test_a_run_keeps_what_it_may_resume_from_and_truncates_progress(done):
    folder = done[0].folder
    assert (folder / "fold0.pt").exists()
    assert [r["text"] for r in workspace.read_jsonl(folder / "progress.jsonl")] == [
        "epoch 1/2"
    ]


def test_headless_progress_is_one_plain_line_each(done):
    lines = done[2].splitlines()
    assert any("epoch 1/2 · 50 % · 9.0 s left" in line for line in lines)
    assert [line.split()[3] for line in lines if "✓" in line] == [
        "setup",
        "run",
        "finish",
    ]
    assert "\r" not in done[2]
    assert "\x1b" not in done[2]


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("failed")
    job = make_job(folder, [("run", "raise RuntimeError('<b>no</b> luck')")])
    return job, *run_quietly(job)


def test_an_error_names_cell_exception_and_message_and_exits_1(failed):
    job, outcome, _ = failed
    assert outcome.exit_code == 1
    assert outcome.message == "failed in cell `run`: RuntimeError: <b>no</b> luck"
    assert workspace.read_json(job.folder / "run.json")["state"] == "failed"


def test_the_executed_notebook_of_a_failed_run_shows_how_it_ended(failed):
    cells = read_cells(failed[0].target)
    assert list(cells)[0] == "run-state"
    assert "&lt;b&gt;no&lt;/b&gt; luck" in cells["run-state"]["source"]
    statuses = [
        cells[name]["metadata"]["papermill"]["status"]
        for name in ("setup", "run", "finish")
    ]
    assert statuses == ["completed", "failed", "pending"]
    page = (failed[0].folder / "99_toy.html").read_text()
    assert "This run did not finish: failed" in page
    assert "<b>no</b>" not in page


def test_bad_input_found_by_the_setup_cell_exits_2_with_the_sentence_alone(tmp_path):
    check = "raise FileNotFoundError('there is no `train.csv`; run `sketch demo`')"
    outcome, _ = run_quietly(make_job(tmp_path, [("setup", check)]))
    assert outcome.exit_code == 2
    assert outcome.message == "there is no `train.csv`; run `sketch demo`"


def test_a_key_error_in_check_reads_as_a_sentence(tmp_path):
    ending = outcomes.Ending(facts={"state": "failed", "cell": "check"})
    ending.facts |= {"name": "KeyError", "message": "'no column `target`'"}
    outcome = outcomes.judge(make_job(tmp_path, []), ending, 1.0)
    assert (outcome.exit_code, outcome.message) == (2, "no column `target`")


def test_a_child_that_breaks_is_failed_with_the_last_line_of_its_log(tmp_path):
    job = make_job(tmp_path, [])
    job.folder.mkdir(parents=True)
    log = "Traceback\n  x\njupyter_client.kernelspec.NoSuchKernel: No such kernel\n\n"
    (job.folder / "runner.log").write_text(log)
    outcome = outcomes.judge(job, outcomes.Ending(code=1), 1.0)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert outcome.message == "failed: NoSuchKernel: No such kernel"


def test_the_folder_is_known_before_the_kernel_starts(tmp_path):
    job = make_job(tmp_path, [], run_name="lite0")
    assert job.folder == tmp_path / "runs" / "lite0"
    assert job.target == tmp_path / "runs" / "lite0" / "99_toy.ipynb"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a{b}"])
def test_a_run_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="plain folder name"):
        make_job(tmp_path, [], run_name=name)


def test_a_notebook_without_run_parameters_is_refused(tmp_path):
    notebook = write_notebook(tmp_path / "x.ipynb", parameters="epochs: int = 3")
    with pytest.raises(ValueError, match="text parameter `runs_dir`"):
        jobs.make_job(notebook, {})


def test_an_executed_copy_is_not_run_over_itself(tmp_path):
    notebook = write_notebook(tmp_path / "runs" / "toy" / "99_toy.ipynb")
    with pytest.raises(ValueError, match="would overwrite"):
        jobs.make_job(notebook, {"runs_dir": str(tmp_path / "runs")})


def test_a_lock_of_another_machine_is_respected(tmp_path):
    job = make_job(tmp_path, [])
    job.folder.mkdir(parents=True)
    held = {"pid": 7, "host": "gpu-node-3", "started": "2026-01-01"}
    (job.folder / ".lock").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="process 7 on gpu-node-3.*delete"):
        runner.run_notebook(job)


def test_a_lock_left_by_a_dead_process_is_taken_over(tmp_path):
    job = make_job(tmp_path, [])
    path = job.folder
    path.mkdir(parents=True)
    stale = {"pid": 999999, "host": socket.gethostname(), "started": "before"}
    (path / ".lock").write_text(json.dumps(stale))
    with folders.locked(job):
        held = json.loads((path / ".lock").read_text())
        assert held["pid"] == os.getpid()
        with (path / ".lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (path / ".lock").read_text() == ""


def test_a_running_record_of_a_dead_process_reads_killed():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    record = {"state": "running", "pid": ended.pid, "runner": {"pid": ended.pid}}
    assert folders.read_state(record) == "killed"
    assert folders.read_state(record | {"pid": os.getpid()}) == "running"
    elsewhere = {"pid": ended.pid, "host": "gpu-node-3"}
    assert folders.read_state(record | {"runner": elsewhere}) == "running"
    assert folders.read_state(record | {"state": "done"}) == "done"


def test_a_dead_process_that_nobody_collected_reads_killed():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while workspace.read_stat(ended.pid)[0] != "Z":
        time.sleep(0.05)
    assert folders.read_state({"state": "running", "pid": ended.pid}) == "killed"
    ended.wait()


def test_a_process_number_given_to_another_is_not_taken_for_the_run():
    long_ago = {"pid": os.getpid(), "started": "2020-01-01T00:00:00+0000"}
    record = {"state": "running", "runner": long_ago}
    assert folders.read_state(record) == "killed"
    now = {"pid": os.getpid(), "started": time.strftime(folders.STAMP)}
    assert folders.read_state({"state": "running", "runner": now}) == "running"


def test_progress_is_read_line_by_line_as_it_grows(tmp_path):
    tail = display.Tail(tmp_path / "progress.jsonl")
    assert tail.read() == []
    with (tmp_path / "progress.jsonl").open("w") as out:
        out.write('{"text": "a"}\n{"te')
        out.flush()
        assert tail.read() == [{"text": "a"}]
        out.write('xt": "b"}\nbroken\n[1]\n')
        out.flush()
        assert tail.read() == [{"text": "b"}]
    assert tail.read() == []


def test_headless_a_burst_of_records_is_its_first_and_its_last_line():
    screen = display.Display("toy", io.StringIO())
    for part in range(1, 101):
        screen.progress({"text": f"{part} of 100", "fraction": part / 100})
    lines = screen.out.getvalue().splitlines()
    assert ["1 of 100" in lines[0], "100 of 100" in lines[-1]] == [True, True]
    assert len(lines) == 2


def test_a_terminal_gets_one_live_bar_that_lines_push_down(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen = display.Display("toy", Terminal())
    screen.progress({"text": "epoch 1/4", "fraction": 0.25, "seconds_left": 250})
    assert screen.out.getvalue().count("\n") == 0
    assert "━━━━━─" in screen.out.getvalue()
    assert "25 % · 4:10 min left" in screen.out.getvalue()
    screen.line("a cell is done")
    screen.close()
    assert screen.out.getvalue().count("\n") == 1
    assert screen.out.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59, "59 s"), (250, "4:10 min")]
    + [(3599.7, "1:00 h"), (7500, "2:05 h")],
)
def test_times_are_short(seconds, text):
    assert display.format_seconds(seconds) == text
