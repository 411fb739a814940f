import pytest

from sketchlib import workspace
from sketchlib.workbook import parameters, session


def namespace(notebook, **changes):
    schema = parameters.read_parameters(parameters.find_notebook(notebook))
    return {name: entry.default for name, entry in schema.items()} | changes


@pytest.fixture
def here(world, tmp_path):
    return session.start(
        "01_eda",
        namespace("01_eda", data_dir=str(world), runs_dir=str(tmp_path / "runs")),
    )


def test_values_are_put_back_as_they_were_meant(world, tmp_path, capsys):
    given = namespace(
        "03_train",
        data_dir=str(world),
        runs_dir=str(tmp_path),
        lr="3e-4",
        tta="[vflip]",
    )
    opened = session.start("03_train", given)
    assert given["lr"] == 0.0003
    assert given["tta"] == ["vflip"]
    assert opened.run.record["parameters"]["lr"] == 0.0003
    assert "run train · data data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": "many"}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"fit": "squash"}, "fit"),
        ({"run_name": "a/b"}, "run_name"),
    ],
)
def test_bad_parameters_stop_a_notebook_run_by_hand(world, tmp_path, change, words):
    given = namespace("03_train", data_dir=str(world), runs_dir=str(tmp_path), **change)
    with pytest.raises(ValueError, match=words):
        session.start("03_train", given)
    assert not list(tmp_path.glob("*/run.json"))


def test_a_missing_data_folder_names_the_demo(tmp_path):
    given = namespace("01_eda", data_dir=str(tmp_path / "no"), runs_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="sketch demo"):
        session.start("01_eda", given)


def test_a_step_before_its_time_says_what_to_run_first(here):
    table = session.read_manifest(here)
    with pytest.raises(FileNotFoundError, match="run 01_eda first"):
        session.read_folds(here, "audit", table)
    with pytest.raises(FileNotFoundError, match="'lite0' was expected"):
        session.read_run(here, "lite0")
    with pytest.raises(ValueError, match="run 03_train first"):
        session.read_predictions(here, [], "oof.npz")


def test_a_log_gets_a_line_a_step_and_the_watcher_a_record(here, capsys):
    bar = session.Progress(here, 2, "epoch")
    bar.step("first")
    bar.step("second")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].startswith("first · 0:0")
    assert lines[-1] == "second · 0:00 left"
    records = workspace.read_jsonl(here.run.dir / "progress.jsonl")
    assert [record["fraction"] for record in records] == [0.5, 1.0]


def test_work_that_counts_itself_prints_every_tenth(here, capsys):
    bar = session.Progress(here, 100, "picture")
    capsys.readouterr()
    for done in range(1, 101):
        bar.reach(done, 100)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_seconds_read_as_a_clock():
    assert session.format_seconds(7) == "0:07"
    assert session.format_seconds(750) == "12:30"
    assert session.format_seconds(3723) == "1:02:03"
