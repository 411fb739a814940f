import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import write_notebook

from sketchlib import workspace
from sketchlib.workbook import cli, detach, doctor

HEAVY = {"numpy", "pandas", "torch", "papermill", "nbformat", "nbconvert", "yaml"}


def run_python(*arguments, **environment):
    root = str(Path(workspace.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": root} | environment,
    )


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "03_train.ipynb")
    return tmp_path


def add_run(root, name, **facts):
    folder = root / "runs" / name
    folder.mkdir(parents=True)
    record = {"name": name, "state": "done", "seconds": 72.0, "notebook": "03_train"}
    record["scores"] = {"oof_accuracy": 0.912}
    workspace.write_json(folder / "run.json", record | facts)
    return folder


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, sketchlib.workbook.cli; print(*sys.modules)"
    loaded = set(run_python("-c", code).stdout.split())
    assert not HEAVY & loaded


def test_help_answers_within_half_a_second():
    times = []
    for _ in range(3):
        started = time.perf_counter()
        ended = run_python("-m", "sketchlib.workbook.cli", "--help")
        times.append(time.perf_counter() - started)
    assert ended.returncode == 0
    assert min(times) < 0.5
    for command in ("demo", "run", "workbook", "runs", "report", "models", "doctor"):
        assert command in ended.stdout


def test_refusing_a_parameter_loads_nothing_heavy(root):
    code = (
        "import sys\nfrom sketchlib.workbook import cli\n"
        "code = cli.main(['run', 'train', '-p', 'epoch', '3'])\n"
        "print(code, *sys.modules)"
    )
    ended = run_python("-c", code, SKETCHBOOK_ROOT=str(root))
    assert ended.stdout.split()[0] == "2"
    assert not HEAVY & set(ended.stdout.split())
    assert ended.stderr.startswith("sketch: no parameter is called `epoch`")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_a_notebook_is_its_parameters(root, capsys, flag):
    assert cli.main(["run", "train", flag]) == 0
    out = capsys.readouterr().out
    assert "03_train.ipynb" in out
    assert "recipe" in out
    assert "one of: none, pen, heavy" in out


def test_a_reader_that_leaves_early_is_no_error(root):
    for number in range(400):
        add_run(root, f"{number:05}" * 30)
    sketch = f"{sys.executable} -m sketchlib.workbook.cli"
    command = f"{sketch} runs | head -1; exit ${{PIPESTATUS[0]}}"
    library = str(Path(workspace.__file__).parents[1])
    ended = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": library},
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_help_of_run_itself_is_the_usual_one(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "--help"])
    assert ended.value.code == 0
    assert "-p NAME VALUE" in capsys.readouterr().out


def test_an_unknown_notebook_is_one_sentence(root, capsys):
    assert cli.main(["run", "trian"]) == 2
    error = capsys.readouterr().err
    assert "did you mean `train`" in error
    assert error.count("\n") == 1


def test_run_ends_with_the_path_of_its_page(root, capsys):
    assert cli.main(["run", "train", "-p", "run_name", "a", "--runs", "here"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == str(root / "here" / "a" / "03_train.html")
    assert Path(last).exists()
    assert (root / "here" / "index.html").exists()


def test_a_negative_time_out_is_refused(root, capsys):
    assert cli.main(["run", "train", "--timeout", "-1"]) == 2
    assert "must be seconds" in capsys.readouterr().err


def test_runs_shows_state_score_and_time_left(root, capsys):
    add_run(root, "lite0")
    running = add_run(root, "lite1", state="running", pid=os.getpid(), scores={})
    record = {"text": "epoch 2/4", "fraction": 0.5, "seconds_left": 90}
    workspace.append_jsonl(running / "progress.jsonl", record)
    assert cli.main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["lite0", "done", "0.912", "1:12", "min"]
    assert "epoch 2/4 · 50 % · 1:30 min left" in lines[2]


def test_runs_without_any_says_how_to_start_one(root, capsys):
    assert cli.main(["runs"]) == 2
    assert "sketch run" in capsys.readouterr().err


def test_report_rebuilds_one_page_or_all(root, capsys):
    for name in ("a", "b"):
        write_notebook(add_run(root, name) / "03_train.ipynb")
    assert cli.main(["report", "a"]) == 0
    assert not (root / "runs" / "b" / "03_train.html").exists()
    assert cli.main(["report"]) == 0
    assert (root / "runs" / "b" / "03_train.html").exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith("index.html")
    assert cli.main(["report", "aa"]) == 2
    assert "did you mean `a`" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_exit_1(root, capsys, monkeypatch):
    def refuse(_):
        raise OSError(28, "no room to write `index.html`: 12 bytes are free")

    add_run(root, "a")
    monkeypatch.setattr("sketchlib.workbook.report.write_index", refuse)
    assert cli.main(["report"]) == 1
    assert "12 bytes are free" in capsys.readouterr().err


def test_demo_data_goes_where_asked_and_its_truth_beside_it(root, capsys, monkeypatch):
    demo = pytest.importorskip("sketchlib.data.demo")
    asked = []
    monkeypatch.setattr(
        demo, "write_demo", lambda data, truth, seed: asked.append((data, truth, seed))
    )
    assert cli.main(["demo"]) == 0
    assert cli.main(["demo", "mine", "--seed", "3"]) == 0
    assert asked == [
        (root / "data" / "demo", root / "data" / "demo-truth", 0),
        (root / "mine", root / "mine-truth", 3),
    ]


def test_doctor_is_green_here_and_red_for_data_that_is_not_there(root, capsys):
    cli.main(["doctor", "--data", str(root / "nowhere")])
    out = capsys.readouterr().out
    assert "ok  Python 3." in out
    assert "GiB memory free" in out
    assert "torch 2." in out
    red = [line for line in out.splitlines() if line.startswith("bad")]
    assert any("nowhere" in line for line in red)
    assert "→" in out


def test_doctor_exits_1_when_one_line_is_red(monkeypatch, capsys):
    green, red = (True, "well", ""), (False, "ill", "do this")
    monkeypatch.setattr(doctor, "_list_checks", lambda *_: [lambda: iter([green])])
    assert cli.main(["doctor"]) == 0
    both = [lambda: iter([green, red])]
    monkeypatch.setattr(doctor, "_list_checks", lambda *_: both)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == ["bad ill", "    → do this"]


def test_memory_is_measured_in_bytes():
    assert 2**28 < workspace.free_memory() < 2**45


def test_run_json_is_valid_for_other_tools(root):
    folder = add_run(root, "a")
    assert json.loads((folder / "run.json").read_text())["state"] == "done"


def test_the_doctor_counts_the_classes_of_the_training_rows(world, capsys):
    cli.main(["doctor", "--data", str(world)])
    assert "48 train, 8 test, 4 classes" in capsys.readouterr().out


def test_the_doctor_says_how_long_a_plan_may_take(root, capsys):
    (root / "params" / "workbooks").mkdir(parents=True)
    steps = "steps:\n  - {name: a, notebook: 03_train, minutes: 3}\n"
    steps += "  - {name: b, notebook: 03_train}\n"
    plan = root / "params" / "workbooks" / "mine.yaml"
    plan.write_text("parameters: {data_dir: data}\n" + steps)
    cli.main(["doctor", "--plan", "mine"])
    assert "bad plan mine\n    → there is no data folder" in capsys.readouterr().out
    (root / "data").mkdir()
    cli.main(["doctor", "--plan", "mine"])
    told = "2 of 2 steps to run, about 3:00 min, 1 of unknown length"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("offline", "fails", "told"),
    [("1", True, "offline is asked for"), ("0", True, "out of reach (no net)")]
    + [("0", False, "answers")],
)
def test_the_doctor_tells_whether_weights_can_be_fetched(
    monkeypatch, offline, fails, told
):
    class Answer:
        def close(self):
            pass

    def connect(address, timeout):
        if fails:
            raise OSError("no net")
        return Answer()

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(doctor.socket, "create_connection", connect)
    ((well, what, remedy),) = doctor._check_hub()
    assert well  # a machine without network is not ill
    assert told in what
    assert bool(remedy) == ("out of reach" in what)


# --- --detach ---------------------------------------------------------------


def test_a_detached_run_outlives_its_terminal(root):
    """The terminal is closed: its session gets SIGHUP, and the run goes on."""
    code = (
        f"import pathlib, time\ngo = pathlib.Path({str(root / 'go')!r})\n"
        "for _ in range(600):\n    if go.exists():\n        break\n"
        "    time.sleep(0.1)\nprint('still here')"
    )
    wait = [("run", code)]
    write_notebook(root / "notebooks" / "03_train.ipynb", wait)
    sketch = f"{sys.executable} -m sketchlib.workbook.cli run train --detach"
    library = str(Path(workspace.__file__).parents[1])
    terminal = subprocess.Popen(
        ["bash", "-c", f"{sketch}; echo code $?; sleep 60"],
        env=os.environ | {"PYTHONPATH": library, "SKETCHBOOK_ROOT": str(root)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    told = [terminal.stdout.readline() for _ in range(4)]
    os.killpg(terminal.pid, signal.SIGHUP)
    terminal.communicate()
    assert told[3] == "code 0\n"
    pid = int(told[0].split("process ")[1].split(";")[0])
    assert os.getsid(pid) == pid
    (root / "go").write_text("x")
    state = root / "runs" / "toy" / "run.json"
    for _ in range(300):
        if state.exists() and workspace.read_json(state)["state"] != "running":
            break
        time.sleep(0.2)
    assert workspace.read_json(state)["state"] == "done"
    assert "finish" in (root / "runs" / "toy.log").read_text()


def test_a_typo_is_told_before_anything_is_detached(root, capsys):
    assert cli.main(["run", "train", "--detach", "-p", "epoch", "3"]) == 2
    assert "did you mean `epochs`" in capsys.readouterr().err
    assert not (root / "runs").exists()


def test_what_ends_at_once_is_told_with_its_exit_code(root, capsys, monkeypatch):
    monkeypatch.setattr(detach, "_FIRST_SECONDS", 30.0)
    (root / "runs").mkdir()
    (root / "runs" / "toy").write_text("a file, not a folder")
    assert cli.main(["run", "train", "--detach"]) == 2
    assert "cannot be written" in capsys.readouterr().out
