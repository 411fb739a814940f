import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toys import PARAMETERS, read_cells, read_text, write_notebook

from sketchlib import workspace
from sketchlib.workbook import (
    cli,
    freshness,
    outcomes,
    parameters,
    plan,
    runner,
    schedule,
)

BUDGET = PARAMETERS + "budget_minutes: float = 0.0  # 0 for no limit; ≥ 0\n"
PLAN = """\
# A small plan.
title: Toys
parameters: {data_dir: data/demo, budget_minutes: 10}
steps:
  - name: audit
    notebook: 01_eda
  - name: lite0
    notebook: 03_train
    needs: [audit]
    file: params/demo.yaml
    parameters: {recipe: heavy}
    budget_share: 0.4
  - name: lite1
    notebook: 03_train
    needs: [audit]
  - name: blend
    notebook: 05_ensemble
    needs: [lite0, lite1]
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with three notebooks, a plan, a parameter file and data."""
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_notebook(tmp_path / "notebooks" / "01_eda.ipynb")
    write_notebook(tmp_path / "notebooks" / "03_train.ipynb", parameters=BUDGET)
    write_notebook(tmp_path / "notebooks" / "05_ensemble.ipynb")
    (tmp_path / "params" / "workbooks").mkdir(parents=True)
    (tmp_path / "params" / "demo.yaml").write_text("epochs: 2\nrecipe: pen\n")
    (tmp_path / "params" / "workbooks" / "toys.yaml").write_text(PLAN)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "data" / "demo" / "train.csv").write_text("class_name,image_path\n")
    return tmp_path


@pytest.fixture
def fake(monkeypatch):
    """Replace the kernel: a run only writes its record; `ends` says how it ended."""
    calls, ends = [], {}

    def run_notebook(job, screen=None, stopper=None):
        calls.append(job.folder.name)
        state = ends.get(job.folder.name, "done")
        code = outcomes.EXIT_CODES[state]
        record = {"state": state, "seconds": 1.0, "parameters": job.values}
        record |= {"finished": str(time.time_ns()), "notebook": job.notebook.stem}
        record |= {"scores": {"oof_accuracy": 0.9, "oof_low": 0.85, "oof_high": 0.95}}
        workspace.write_json(job.folder / "run.json", record | job.facts)
        error = {"cell": "run", "name": "E", "message": "no luck"} if code else None
        return outcomes.Outcome(state, code, job.folder, 1.0, error)

    monkeypatch.setattr(runner, "run_notebook", run_notebook)
    run_notebook.calls, run_notebook.ends = calls, ends
    return run_notebook


def run_toys(*arguments):
    return cli.main(["workbook", "toys", *arguments])


def write_plan(root, text):
    (root / "params" / "workbooks" / "toys.yaml").write_text(text)


def read_steps(*pairs):
    chosen = plan.read_plan("params/workbooks/toys.yaml", pairs)
    return {step.name: step.job.values for step in chosen.steps}


def test_the_nearer_setting_wins_and_the_command_line_over_all(root):
    steps = read_steps()
    assert steps["lite0"]["epochs"] == 2
    assert steps["lite0"]["recipe"] == "heavy"
    assert steps["lite1"]["recipe"] == "pen"
    assert steps["audit"]["data_dir"] == "data/demo"
    assert steps["lite1"]["run_name"] == "lite1"
    assert read_steps(("recipe", "none"))["lite0"]["recipe"] == "none"


def test_a_step_gets_its_share_of_the_budget(root):
    assert read_steps()["lite0"]["budget_minutes"] == 4.0
    assert read_steps(("budget_minutes", "30"))["lite0"]["budget_minutes"] == 12.0
    assert "budget_minutes" not in read_steps()["audit"]


def test_paths_of_the_command_line_are_absolute_those_of_the_file_as_written(root):
    given = read_steps(("data_dir", "mine"))
    assert given["audit"]["data_dir"] == str(root / "mine")
    chosen = plan.read_plan("params/workbooks/toys.yaml", (), "elsewhere")
    assert chosen.runs_dir == root / "elsewhere"


def test_a_second_time_nothing_runs(root, fake, capsys):
    assert run_toys() == 0
    assert fake.calls == ["audit", "lite0", "lite1", "blend"]
    capsys.readouterr()
    assert run_toys() == 0
    assert len(fake.calls) == 4
    assert capsys.readouterr().out.count("up to date") == 4


def explain_after(root, capsys, change):
    """What a dry run says after a change, step → reason."""
    assert run_toys() == 0
    change()
    capsys.readouterr()
    assert run_toys("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    return {
        line.split()[1]: line.split(maxsplit=2)[2]
        for line in lines
        if line.startswith(("run ", "skip"))
    }


def test_changed_parameters_are_named_and_only_what_follows_runs(root, fake, capsys):
    told = explain_after(
        root,
        capsys,
        lambda: (root / "params" / "demo.yaml").write_text("epochs: 5\n"),
    )
    assert told == {
        "audit": "up to date",
        "lite0": "parameters changed: epochs 2 → 5",
        "lite1": "up to date",
        "blend": "upstream lite0 runs again",
    }


def test_a_comment_in_a_parameter_file_changes_nothing(root, fake, capsys):
    path = root / "params" / "demo.yaml"
    told = explain_after(
        root, capsys, lambda: path.write_text("# why\n" + path.read_text())
    )
    assert set(told.values()) == {"up to date"}


def test_changed_data_reruns_everything(root, fake, capsys):
    path = root / "data" / "demo" / "train.csv"
    told = explain_after(root, capsys, lambda: path.write_text("more,rows\n"))
    assert told["audit"] == "data changed"
    assert told["blend"] == "data changed"


def test_a_changed_notebook_reruns_but_its_outputs_do_not(root, fake, capsys):
    path = root / "notebooks" / "05_ensemble.ipynb"
    ran = path.read_text().replace('"execution_count": null', '"execution_count": 7')
    told = explain_after(root, capsys, lambda: path.write_text(ran))
    assert told["blend"] == "up to date"
    cells = [("run", "print('new')")]
    told = explain_after(root, capsys, lambda: write_notebook(path, cells))
    assert told["blend"] == "notebook changed"
    assert told["lite0"] == "up to date"


def test_changed_sources_rerun(root, fake, capsys, monkeypatch):
    told = explain_after(
        root,
        capsys,
        lambda: monkeypatch.setattr(freshness, "hash_library", lambda: "new"),
    )
    assert told["audit"] == "code changed"


def test_the_library_hash_leaves_out_how_pages_look():
    hashed = []
    original = workspace.hash_files
    try:
        workspace.hash_files = lambda paths: hashed.extend(paths) or "x"
        freshness.hash_library()
    finally:
        workspace.hash_files = original
    names = {path.name for path in hashed}
    assert "workspace.py" in names
    assert "report.py" not in names


def test_a_missing_output_or_an_unfinished_run_is_made_again(root, fake, capsys):
    assert run_toys() == 0
    record = workspace.read_json(root / "runs" / "lite1" / "run.json")
    gone = record | {"outputs": ["oof.npz"]}
    workspace.write_json(root / "runs" / "lite1" / "run.json", gone)
    stopped = workspace.read_json(root / "runs" / "audit" / "run.json")
    stopped["state"] = "interrupted"
    workspace.write_json(root / "runs" / "audit" / "run.json", stopped)
    capsys.readouterr()
    run_toys("--dry-run")
    out = capsys.readouterr().out
    assert "oof.npz is gone" in out
    assert "last time interrupted" in out


def test_force_runs_a_step_and_what_needs_it(root, fake):
    run_toys()
    fake.calls.clear()
    assert run_toys("--force", "lite1") == 0
    assert fake.calls == ["lite1", "blend"]


def test_what_does_not_need_the_failed_step_still_runs_and_the_rest_resumes(
    root, fake, capsys
):
    fake.ends["lite0"] = "killed"
    assert run_toys() == 137
    assert fake.calls == ["audit", "lite0", "lite1"]
    captured = capsys.readouterr()
    assert "blend: not run, because it needs lite0" in captured.out
    assert "lite0: killed in cell `run`" in captured.err
    fake.ends.clear()
    fake.calls.clear()
    assert run_toys() == 0
    assert fake.calls == ["lite0", "blend"]


def test_an_interrupt_stops_the_whole_plan(root, fake, capsys):
    fake.ends["lite0"] = "interrupted"
    assert run_toys() == 130
    assert fake.calls == ["audit", "lite0"]
    assert "not run: lite1, blend" in capsys.readouterr().out


def test_the_end_is_a_table_of_scores_and_the_index(root, fake, capsys):
    run_toys()
    out = capsys.readouterr().out
    assert "0.900  0.850 – 0.950" in out
    assert out.splitlines()[-1] == str(root / "runs" / "index.html")
    assert (root / "runs" / "index.html").exists()


def test_time_left_is_told_once_steps_are_known(root, fake, capsys):
    run_toys()
    capsys.readouterr()
    run_toys("--force", "audit")
    assert "left)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("title: Toys", "titel: Toys", "did you mean `title`"),
        ("budget_share", "budget_shares", "did you mean `budget_share`"),
        ("needs: [audit]", "needs: [audti]", "did you mean `audit`"),
        ("needs: [audit]", "needs: [blend]", "no step before it"),
        ("needs: [audit]", "needs: audit", "must be a list"),
        ("name: lite1", "name: lite0", "two steps"),
        ("notebook: 01_eda", "notebook: 01_edda", "did you mean `01_eda`"),
        ("recipe: heavy", "recipe: haevy", "did you mean `heavy`"),
        ("data_dir:", "data_dri:", "did you mean `data_dir`"),
        ("file: params/demo.yaml", "file: params/gone.yaml", "no parameter file"),
        ("notebook: 05_ensemble", "notbook: x", "needs `name` and `notebook`"),
        ("steps:", "x:", "no setting `x`"),
        (PLAN, "title: Nothing\n", "has none"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_step(root, fake, capsys, old, new, told):
    write_plan(root, PLAN.replace(old, new, 1))
    assert run_toys() == 2
    assert told in capsys.readouterr().err
    assert fake.calls == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-p", "epoch", "3"], "did you mean `epochs`"),
        (["-p", "epochs", "none"], "a whole number"),
        (["-p", "run_name", "x"], "each step is named by the plan"),
        (["-p", "data_dir", "nowhere"], "there is no data folder"),
        (["--force", "lite9"], "did you mean `lite"),
    ],
)
def test_a_wrong_command_line_is_refused_before_any_step(
    root, fake, capsys, arguments, told
):
    assert run_toys(*arguments) == 2
    assert told in capsys.readouterr().err
    assert fake.calls == []


def test_without_demo_data_the_remedy_is_named(root, fake, capsys):
    os.rename(root / "data", root / "moved")
    assert run_toys() == 2
    assert "run `sketch demo` first" in capsys.readouterr().err


def test_an_unknown_plan_gets_the_nearest_one(root, capsys):
    assert cli.main(["workbook", "tos"]) == 2
    assert "did you mean `toys`" in capsys.readouterr().err


def test_real_runs_are_made_once_and_skipped_the_second_time(root, capsys, monkeypatch):
    monkeypatch.setattr(
        freshness, "hash_library", lambda: "the sources may change meanwhile"
    )
    write_plan(root, PLAN.split("  - name: lite1")[0])
    assert run_toys() == 0
    out = capsys.readouterr().out
    assert "[2/2] lite0: missing" in out
    values = workspace.read_json(root / "runs" / "lite0" / "run.json")["parameters"]
    assert (values["recipe"], values["epochs"]) == ("heavy", 2)
    assert run_toys() == 0
    assert capsys.readouterr().out.count("up to date") == 2


def test_every_toy_parameter_is_typed():
    assert parameters.parse_cell(BUDGET, "toy")["budget_minutes"].type == "float"


# --- grids ------------------------------------------------------------------

GRID = """\
title: A grid
parameters: {data_dir: data/demo}
steps:
  - {name: audit, notebook: 01_eda}
  - name: trial
    notebook: 03_train
    needs: [audit]
    grid: {recipe: [pen, none], lr: [1.0e-3, 0.1], folds: [[0], [0, 1]]}
    cpus: 0.5
  - {name: blend, notebook: 05_ensemble, needs: [trial]}
"""


def test_a_grid_is_a_step_for_every_combination(root):
    write_plan(root, GRID)
    chosen = plan.read_plan("params/workbooks/toys.yaml")
    names = [step.name for step in chosen.steps]
    assert len(names) == 1 + 8 + 1
    assert names[1:3] == ["trial-pen-0.001-0", "trial-pen-0.001-0+1"]
    values = chosen.steps[8].job.values
    assert (values["recipe"], values["lr"], values["folds"]) == ("none", 0.1, [0, 1])
    assert chosen.steps[8].cpus == 0.5
    assert chosen.steps[1].needs == ("audit",)
    assert set(chosen.steps[-1].needs) == set(names[1:9])


def test_a_grids_name_in_a_list_stands_for_its_runs(root):
    text = PARAMETERS + "runs: list[str] = []  # to blend\n"
    write_notebook(root / "notebooks" / "05_ensemble.ipynb", parameters=text)
    write_plan(root, GRID.replace("needs: [trial]", "parameters: {runs: [x, trial]}"))
    blend = plan.read_plan("params/workbooks/toys.yaml").steps[-1]
    assert blend.job.values["runs"][:2] == ["x", "trial-pen-0.001-0"]
    assert len(blend.job.values["runs"]) == 9


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("recipe: [pen, none]", "recipe: pen", "must be a list of values"),
        ("recipe: [pen, none]", "recpe: [pen]", "did you mean `recipe`"),
        ("recipe: [pen, none]", "recipe: [pen, nnoe]", "did you mean `none`"),
        ("cpus: 0.5", "parameters: {lr: 0.1}", "stands in the grid and beside it"),
        ("[[0], [0, 1]]", str(list(range(300))), "more than 1,000"),
    ],
)
def test_a_wrong_grid_is_refused(root, fake, capsys, old, new, told):
    write_plan(root, GRID.replace(old, new, 1))
    assert run_toys() == 2
    assert told in capsys.readouterr().err
    assert fake.calls == []


# --- side by side -----------------------------------------------------------

WAIT = """\
import os, pathlib, time
print("threads", os.environ["OMP_NUM_THREADS"])
mine = run.dir / "here"
mine.write_text("x")
other = run.dir.parent / {"lite0": "lite1", "lite1": "lite0"}[run_name] / "here"
for _ in range(600):
    if other.exists():
        break
    time.sleep(0.05)
else:
    raise RuntimeError("nobody ran beside me")"""


def test_independent_steps_run_side_by_side_with_their_share_of_threads(
    root, capsys, monkeypatch
):
    monkeypatch.setattr(schedule, "_count_cores", lambda: 6)
    cells = [("run", WAIT)]
    write_notebook(root / "notebooks" / "03_train.ipynb", cells, parameters=BUDGET)
    assert run_toys("--jobs", "2") == 0
    for name in ("lite0", "lite1"):
        run = read_cells(root / "runs" / name / "03_train.ipynb")["run"]
        assert "threads 3\n" in read_text(run)
    out = capsys.readouterr().out
    assert out.index("lite1: missing") < out.index("lite0  ✓")
    assert out.index("[4/4] blend") > out.index("lite1  ✓")


def test_a_plan_says_itself_how_many_steps_run_at_a_time(root, capsys, monkeypatch):
    monkeypatch.setattr(schedule, "_count_cores", lambda: 6)
    write_notebook(
        root / "notebooks" / "03_train.ipynb", [("run", WAIT)], parameters=BUDGET
    )
    write_plan(root, "jobs: 2\n" + PLAN)
    assert run_toys() == 0
    alone = workspace.read_json(root / "runs" / "audit" / "run.json")
    assert alone["state"] == "done"
    chosen = plan.read_plan(root / "params" / "workbooks" / "toys.yaml")
    assert chosen.jobs == 2
    assert chosen.count_beside() == {"audit": 1, "lite0": 2, "lite1": 2, "blend": 1}
    one = plan.read_plan(root / "params" / "workbooks" / "toys.yaml", jobs=1)
    minutes = [each.steps[1].job.values["budget_minutes"] for each in (chosen, one)]
    assert minutes[1] == pytest.approx(minutes[0] / 2)  # in turn: half the time each
    write_plan(root, "jobs: 0\n" + PLAN)
    assert run_toys() == 2
    assert "must be at least 1, not 0" in capsys.readouterr().err


def test_a_broken_run_folder_is_told_and_the_others_end(root, capsys):
    (root / "runs").mkdir()
    (root / "runs" / "lite0").write_text("a file, not a folder")
    assert run_toys("--jobs", "2") == 2
    assert "`" + str(root / "runs" / "lite0") in capsys.readouterr().err
    record = workspace.read_json(root / "runs" / "lite1" / "run.json")
    assert record["state"] == "done"


def test_jobs_must_be_a_number_of_jobs(root, capsys):
    assert run_toys("--jobs", "0") == 2
    assert "--jobs must be at least 1" in capsys.readouterr().err


def test_ctrl_c_ends_every_run_of_a_plan(root):
    cells = [("run", "(run.dir / 'here').write_text('x')\nimport time\ntime.sleep(60)")]
    write_notebook(root / "notebooks" / "03_train.ipynb", cells, parameters=BUDGET)
    process = start_plan("--jobs", "2")
    marks = [root / "runs" / name / "here" for name in ("lite0", "lite1")]
    wait_until(lambda: all(mark.exists() for mark in marks), 60)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "not run: blend" in out
    for name in ("lite0", "lite1"):
        record = workspace.read_json(root / "runs" / name / "run.json")
        assert record["state"] == "interrupted"
        assert not Path(f"/proc/{record['pid']}").exists()


def start_plan(*arguments):
    command = [sys.executable, "-m", "sketchlib.workbook.cli", "workbook", "toys"]
    library = str(Path(workspace.__file__).parents[1])
    return subprocess.Popen(
        [*command, *arguments],
        env=os.environ | {"PYTHONPATH": library},
        start_new_session=True,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(holds, seconds):
    patience = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < patience, "it did not happen in time"
        time.sleep(0.05)
