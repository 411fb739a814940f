"""Copies of runs for trackers; the files stay the truth."""

import csv
import json

import pytest

from sketchlib import workspace
from sketchlib.workbook import cli, trackers


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs" / "lite0"
    folder.mkdir(parents=True)
    record = {"name": "lite0", "state": "done", "seconds": 7.5, "notebook": "03_train"}
    record |= {"hypothesis": "=cmd()", "scores": {"accuracy": 0.75}}
    record["parameters"] = {"lr": 0.1, "tta": ["hflip"], "model": "한글"}
    workspace.write_json(folder / "run.json", record)
    for epoch in range(3):
        row = {"fold": 0, "epoch": epoch, "valid_accuracy": 0.2 * epoch}
        workspace.append_jsonl(folder / "metrics.jsonl", row | {"odd": float("nan")})
    unfinished = tmp_path / "runs" / "broken"
    unfinished.mkdir()
    workspace.write_json(unfinished / "run.json", {"state": "failed"})
    return tmp_path / "runs"


def test_csv_has_a_row_for_each_finished_run_and_no_formula(runs, capsys):
    assert cli.main(["export", "csv", "--runs", str(runs)]) == 0
    with open(capsys.readouterr().out.strip(), encoding="utf-8") as lines:
        (row,) = csv.DictReader(lines)
    assert row["run"] == "lite0"
    assert row["scores.accuracy"] == "0.75"
    assert row["parameters.model"] == "한글"
    assert row["parameters.tta"] == "hflip"
    assert row["hypothesis"] == "'=cmd()"


def test_jsonl_keeps_numbers(runs, tmp_path):
    out = tmp_path / "all.jsonl"
    assert cli.main(["export", "jsonl", "--runs", str(runs), "--out", str(out)]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert (row["scores.accuracy"], row["parameters.lr"]) == (0.75, 0.1)


def test_tensorboard_gets_the_curves_and_the_scores(runs):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main(["export", "tensorboard", "--runs", str(runs)]) == 0
    found = EventAccumulator(str(runs / "tensorboard" / "lite0"))
    found.Reload()
    curve = found.Scalars("fold0/valid_accuracy")
    assert [event.step for event in curve] == [0, 1, 2]
    assert [event.value for event in curve] == pytest.approx([0.0, 0.2, 0.4])
    assert found.Scalars("accuracy")[0].value == 0.75
    assert "fold0/odd" not in found.Tags()["scalars"]


def test_without_a_tracker_nothing_is_loaded(runs, monkeypatch):
    monkeypatch.setattr(trackers, "_make", None)
    tracker = trackers.Tracker("", runs / "lite0", {})
    tracker.epoch(0, {"epoch": 1, "valid_accuracy": 0.5})
    tracker.finish()


def test_a_tracker_that_is_not_installed_or_known_is_told(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", "no_such_package")
    with pytest.raises(ValueError, match="pip install no_such_package"):
        trackers.check_tracker("wandb")
    with pytest.raises(ValueError, match="one of mlflow"):
        trackers.check_tracker("comet")
    trackers.check_tracker("")
