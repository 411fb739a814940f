import json
import shutil

import numpy as np
import pytest

from sketchlib import workspace
from sketchlib.training.predictions import Predictions, write_predictions
from sketchlib.workbook import cli, parameters, reproduce
from sketchlib.workbook.outcomes import Outcome

RECORD = {
    "state": "done",
    "notebook": "03_train",
    "commit": "abc",
    "machine": "one",
    "versions": {"torch": "2"},
    "parameters": {"deterministic": True},
    "scores": {"accuracy": 0.8, "accuracy_low": 0.7, "accuracy_high": 0.9},
}


def write_run(folder, logits, record=RECORD, loss=1.0):
    folder.mkdir(exist_ok=True)
    ids, classes = np.array(["a", "b"]), np.array(["x", "y"])
    for name in ("oof.npz", "test.npz"):
        made = Predictions(ids, classes, np.float32(logits), np.zeros(2, int))
        write_predictions(folder / name, made)
    workspace.write_json(folder / "run.json", record)
    row = {"fold": 0, "epoch": 1, "train_loss": loss, "seconds": 3.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_the_same_run_is_equal_whatever_time_it_took(tmp_path):
    one = write_run(tmp_path / "one", [[1, 2], [3, 4]])
    two = write_run(tmp_path / "two", [[1, 2], [3, 4]])
    lines = (two / "metrics.jsonl").read_text().replace("3.0", "9.0")
    (two / "metrics.jsonl").write_text(lines)
    assert reproduce.compare(one, two).verdict == reproduce.EQUAL


def test_a_small_difference_is_noise_and_what_changed_is_named(tmp_path):
    one = write_run(tmp_path / "one", [[1, 2], [3, 4]])
    newer = RECORD | {"versions": {"torch": "3"}}
    two = write_run(tmp_path / "two", [[1, 2.001], [3, 4]], newer, loss=1.1)
    found = reproduce.compare(one, two)
    assert found.verdict == reproduce.NOISE
    assert "fold 0, epoch 1: train_loss 1.0 → 1.1" in found.text
    assert "torch 2 → 3" in found.text


def test_a_score_outside_the_interval_is_different(tmp_path):
    one = write_run(tmp_path / "one", [[1, 2], [3, 4]])
    worse = RECORD | {"scores": RECORD["scores"] | {"accuracy": 0.5}}
    two = write_run(tmp_path / "two", [[2, 1], [3, 4]], worse)
    found = reproduce.compare(one, two)
    assert found.verdict == reproduce.DIFFERENT
    assert "accuracy 0.8000 then, 0.5000 now" in found.text


def test_only_finished_training_runs_are_run_again(tmp_path, capsys):
    write_run(tmp_path / "one", [[1, 2], [3, 4]], RECORD | {"state": "killed"})
    assert cli.main(["reproduce", "one", "--runs", str(tmp_path)]) == 2
    assert "should be a finished run of 03_train" in capsys.readouterr().err
    assert cli.main(["reproduce", "two", "--runs", str(tmp_path)]) == 2
    assert "no run is called `two`" in capsys.readouterr().err


def test_a_parameter_that_is_gone_is_named(tmp_path):
    record = RECORD | {"parameters": {"no_longer": 1}}
    notebook = parameters.find_notebook("03_train")
    with pytest.raises(ValueError, match="no_longer, which 03_train.ipynb no longer"):
        reproduce.make_overrides(record, notebook, tmp_path / "one", "again")


def test_it_runs_again_under_as_many_threads(tmp_path, monkeypatch):
    record = RECORD | {"threads": 3, "parameters": {}}
    write_run(tmp_path / "one", [[1, 2], [3, 4]], record)
    jobs = []

    def run_notebook(job):
        jobs.append(job)
        write_run(tmp_path / "one-again", [[1, 2], [3, 4]], record)
        return Outcome("done", 0, tmp_path, 0.0)

    monkeypatch.setattr(reproduce.runner, "run_notebook", run_notebook)
    assert reproduce.reproduce(tmp_path / "one").verdict == reproduce.EQUAL
    assert jobs[0].threads == 3


def test_another_number_of_threads_is_named(tmp_path):
    one = write_run(tmp_path / "one", [[1, 2], [3, 4]], RECORD | {"threads": 1})
    two = write_run(
        tmp_path / "two", [[1, 2], [3, 5]], RECORD | {"threads": 0}, loss=2.0
    )
    assert "threads 1 → 0" in reproduce.compare(one, two).text
    older = workspace.read_json(one / "run.json")
    del older["threads"]  # a run of before they were recorded
    workspace.write_json(one / "run.json", older)
    assert "threads" not in reproduce.compare(one, two).text


@pytest.mark.slow
def test_a_real_run_is_reproduced_bit_by_bit(world, tmp_path, capsys):
    runs = tmp_path / "runs"
    asked = ["--runs", str(runs), "-p", "data_dir", str(world)]
    assert cli.main(["run", "01_eda", *asked, "-p", "folds", "2"]) == 0
    shutil.move(next(runs.glob("*/folds.csv")).parent, runs / "audit")
    smoke = ["-f", "params/03_train/smoke.yaml", "-p", "run_name", "one"]
    assert cli.main(["run", "03_train", *asked, *smoke]) == 0
    assert cli.main(["reproduce", "one", "--runs", str(runs)]) == 0
    assert "one: equal" in capsys.readouterr().out
    assert not (runs / "one-again").exists()
