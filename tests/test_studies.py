import numpy as np
import pandas as pd
import pytest

from sketchlib import workspace
from sketchlib.analysis import studies
from sketchlib.data import manifest, splits
from sketchlib.training import predictions
from sketchlib.workbook import cli


@pytest.fixture
def trials():
    return pd.DataFrame(
        {
            "number": [0, 1, 2, 3, 4],
            "state": ["complete", "pruned", "complete", "complete", "failed"],
            "kind": ["train", "train", "probe", "train", "train"],
            "score": [0.5, 0.3, 0.6, 0.7, np.nan],
            "run": list("abcde"),
            "baseline": [True, False, False, False, False],
            "lr": [0.001, 0.01, np.nan, 0.002, 0.1],
            "fit": ["ink", "pad", "ink", "pad", "ink"],
        }
    )


def test_the_best_so_far_never_falls_and_names_the_best(trials):
    ax = studies.plot_progress(trials, "accuracy")
    (steps,) = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps.get_ydata()) == [0.5, 0.6, 0.7]
    assert any("0.700" in text.get_text() for text in ax.texts)
    falling = studies.plot_progress(trials, "log_loss")
    (steps,) = [line for line in falling.lines if line.get_drawstyle() == "steps-post"]
    assert list(steps.get_ydata()) == [0.5, 0.5, 0.5]


def test_what_varied_is_found_among_the_columns(trials):
    assert studies.list_parameters(trials) == ["lr", "fit"]


def test_slices_leave_out_what_failed_or_has_no_value(trials):
    figure = studies.plot_slices(trials, ["lr", "fit"], "accuracy")
    points = [sum(len(c.get_offsets()) for c in ax.collections) for ax in figure.axes]
    assert points == [3, 4]


def test_the_best_third_is_red_in_parallel(trials):
    ax = studies.plot_parallel(trials, ["lr", "fit"], "accuracy")
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    red = [line for line in lines if line.get_color() == studies.COLOURS["train"]]
    assert len(lines) == 3 and len(red) == 1
    assert red[0].get_ydata()[-1] > max(
        line.get_ydata()[-1] for line in lines if line is not red[0]
    )


def test_what_only_probes_have_does_not_empty_the_parallel_lines(trials):
    trials["strength"] = [np.nan, np.nan, 0.0225059, np.nan, np.nan]
    ax = studies.plot_parallel(trials, ["lr", "fit", "strength"], "accuracy")
    assert len([line for line in ax.lines if len(line.get_xdata()) == 3]) == 3
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["lr", "fit", "accuracy"]


def test_numbers_on_a_slice_are_short(trials):
    trials["strength"] = [0.00231308, 0.00508351, 0.0225059, 0.00231308, np.nan]
    figure = studies.plot_slices(trials, ["strength"], "accuracy")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0.00231", "0.00508", "0.0225"]


def test_the_curse_draws_a_line_a_run():
    table = pd.DataFrame(
        {
            "name": ["baseline", "top 1"],
            "search": [0.5, 0.7],
            "fresh": [0.5, 0.6],
            "chosen": [False, True],
        }
    )
    ax = studies.plot_curse(table)
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.5, 0.5], [0.7, 0.6]]


def test_the_notebook_searches_judges_and_transfers(world, tmp_path):
    table = manifest.read_manifest(world)
    audit = tmp_path / "audit"
    audit.mkdir()
    splits.make_folds(table, None, 2, seed=0).to_csv(audit / "folds.csv", index=False)
    asked = ["run", "06_tune", "-f", "params/06_tune/smoke.yaml"]
    asked += ["-p", "data_dir", str(world), "--runs", str(tmp_path)]
    assert cli.main(asked) == 0
    record = workspace.read_json(tmp_path / "tune" / "run.json")
    assert record["state"] == "done" and 0 < record["saved_epochs"] < 1
    for name in ("tune-baseline", "tune-top-1", "tune-large-top-1"):
        assert workspace.read_json(tmp_path / name / "run.json")["state"] == "done"
        oof = predictions.read_predictions(tmp_path / name / "oof.npz")
        assert len(oof.image_ids) == 48
        assert len(predictions.read_predictions(tmp_path / name / "test.npz").fold) == 8
    assert "sketch run 03_train" in (tmp_path / "tune" / "best.yaml").read_text()
