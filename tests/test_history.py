"""The retrospective on planted runs: what they are worth is known beforehand."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sketchlib import workspace
from sketchlib.analysis import journey
from sketchlib.training import predictions
from sketchlib.workbook import history

CLASSES = ["circle", "cross"]
N = 400


@pytest.fixture
def labels():
    rows = [(f"train/{i}.png", CLASSES[i % 2], i % 2, "train") for i in range(N)]
    return pd.DataFrame(rows, columns=["image_id", "class_name", "label", "subset"])


def plant(runs, name, right, minute, *, folds=4, notebook="03_train", **facts):
    """A finished run that has the first `right` pictures right."""
    truth = np.arange(N) % 2
    said = np.where(np.arange(N) < right, truth, 1 - truth)
    ids = np.array([f"train/{i}.png" for i in range(N)])
    logits = np.eye(2, dtype=np.float32)[said] * 4
    fold = (np.arange(N) % folds).astype(np.int64)
    (runs / name).mkdir(parents=True)
    made = predictions.Predictions(ids, np.array(CLASSES), logits, fold)
    predictions.write_predictions(runs / name / "oof.npz", made)
    parameters = {"run_name": name, "model": "lite0", "augment": "pen", "side_px": 96}
    parameters |= facts.pop("parameters", {})
    record = {"name": name, "state": "done", "notebook": notebook, "seconds": 120.0}
    record |= {"started": f"2026-01-01T00:{minute:02}:00+0000"}
    record |= {"scores": {"accuracy": right / N, "accuracy_low": right / N - 0.03}}
    record["scores"]["accuracy_high"] = right / N + 0.03
    workspace.write_json(
        runs / name / "run.json", record | {"parameters": parameters} | facts
    )
    return runs / name


@pytest.fixture
def runs(tmp_path):
    runs = tmp_path / "ann" / "runs"
    plant(runs, "base", 240, 1)
    better = {"augment": "elastic"}
    plant(runs, "better", 300, 2, baseline="base", parameters=better, hypothesis="e")
    plant(runs, "same", 242, 3, baseline="base", parameters={"augment": "none"})
    plant(runs, "worse", 200, 4, baseline="base", parameters={"augment": "x"})
    plant(runs, "folded", 320, 5, folds=5, baseline="base", parameters=better)
    wide = {"side_px": 224, "model": "lite1"}
    plant(runs, "wide", 310, 6, baseline="base", parameters=wide)
    plant(runs, "orphan", 250, 7, baseline="gone")
    plant(runs, "alone", 260, 8, parameters={"augment": "elastic", "side_px": 128})
    members = {"members": ["better", "wide"], "weights": {"better": 0.7, "wide": 0.3}}
    plant(runs, "blend", 330, 9, notebook="05_ensemble", **members)
    killed = plant(runs, "killed", 0, 10, state="killed", scores={})
    (killed / "oof.npz").unlink()
    return runs


def measure(runs, labels):
    entries = history.read_entries([runs])
    return entries, history.measure_gains(entries, labels, draws=200)


def test_every_run_is_told_in_the_order_it_was_started(runs):
    log = history.tabulate(history.read_entries([runs]))
    names = ["base", "better", "same", "worse", "folded", "wide", "orphan", "alone"]
    assert log["run"].tolist() == [*names, "blend", "killed"]
    assert log["minutes"].tolist() == [2.0] * 10
    assert log.set_index("run")["score"]["base"] == 0.6
    assert np.isnan(log.set_index("run")["score"]["killed"])


def test_the_verdicts_are_the_planted_ones(runs, labels):
    gains = measure(runs, labels)[1].set_index("run")
    assert gains["verdict"].to_dict() == {
        "better": "better",
        "same": "cannot tell yet",
        "worse": "worse",
        "folded": "not comparable",
        "wide": "better",
        "orphan": "not comparable",
        "blend": "better",
    }
    assert gains["baseline"]["blend"] == "wide"  # its best member
    assert gains["gain"]["better"] == pytest.approx(60 / N)
    assert gains["low"]["better"] < 60 / N < gains["high"]["better"]


def test_what_was_not_compared_fairly_is_named_with_the_reason(runs, labels):
    entries, gains = measure(runs, labels)
    reasons = gains.set_index("run")["reason"]
    assert reasons["better"] == reasons["same"] == ""
    assert "the same folds" in reasons["folded"]
    assert reasons["wide"] == "different pixels (side_px) beside the change"
    assert "not among the runs" in reasons["orphan"]
    alone = history.list_uncompared(entries).set_index("run")
    assert list(alone.index) == ["alone"]
    assert alone["nearest"]["alone"] == "better"
    assert alone["changed"]["alone"] == "side_px 96 → 128"


def test_changed_data_makes_a_gain_unfair(runs, labels):
    for name, data in (("base", "x"), ("better", "y")):
        path = runs / name / "run.json"
        record = workspace.read_json(path) | {"fingerprint": {"data": data}}
        workspace.write_json(path, record)
    gains = measure(runs, labels)[1].set_index("run")
    assert gains["reason"]["better"] == "the data changed between them"


def test_minutes_are_counted_by_what_came_of_them(runs, labels):
    entries, gains = measure(runs, labels)
    cost = history.count_cost(history.tabulate(entries), gains).set_index("outcome")
    assert cost["minutes"].sum() == 20
    assert cost["runs"]["better"] == 3
    assert cost["minutes_per_point"]["better"] == pytest.approx(8 / 37.5)
    assert np.isnan(cost["minutes_per_point"]["worse"])
    assert cost["runs"]["ended early"] == 1
    told = history.describe_cost(cost.reset_index(), gains)
    assert "37.5 points" in told
    assert "*wide*: +17.5 points for 2.0 minutes" in told


def test_the_family_has_members_weights_and_their_parents(runs):
    path = runs / "better" / "run.json"
    record = workspace.read_json(path)
    record["parameters"]["teacher"] = "base"
    workspace.write_json(path, record)
    entries = history.read_entries([runs])
    final = history.find_final(entries)
    assert final.name == "blend"
    parents = history.trace_parents(entries, final)
    edges = [tuple(row) for row in parents[["child", "parent", "role"]].to_numpy()]
    assert edges == [
        ("blend", "better", "member"),
        ("blend", "wide", "member"),
        ("better", "base", "teacher"),
    ]
    assert parents["depth"].tolist() == [1, 1, 2]
    assert parents["weight"].tolist()[:2] == [0.7, 0.3]
    ax = journey.plot_family(parents, "blend", 0.825)
    texts = {text.get_text() for text in ax.texts}
    assert {"0.70", "0.30", "teacher"} <= texts


def test_a_generation_is_counted_by_the_longest_way():
    edges = [("blend", "a"), ("blend", "audit"), ("a", "audit")]
    assert history._count_depths(edges, "blend") == {"blend": 0, "a": 1, "audit": 2}
    loop = [("x", "y"), ("y", "x"), ("y", "z"), ("z", "y")]
    assert set(history._count_depths(loop, "x")) == {"x", "y", "z"}


def test_folders_of_several_people_become_one_table_and_copies_count_once(
    runs, labels, tmp_path
):
    import shutil

    theirs = tmp_path / "ben" / "runs"
    plant(theirs, "better", 280, 20, baseline="base")
    shutil.copytree(runs / "base", theirs / "base")
    entries = history.read_entries([runs, theirs])
    names = [entry.name for entry in entries]
    assert len(names) == 11
    assert names.count("ann/base") == 1
    assert "ben/base" not in names
    gains = history.measure_gains(entries, labels, draws=200).set_index("run")
    assert gains["gain"]["ben/better"] == pytest.approx(40 / N)
    assert gains["gain"]["ann/better"] == pytest.approx(60 / N)


def test_two_folders_of_one_name_keep_distinct_owners(tmp_path):
    owners = history.name_owners([tmp_path / "a" / "x", tmp_path / "b" / "x"])
    assert len(set(owners)) == 2


def test_a_folder_that_is_not_there_and_no_run_at_all_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        history.read_entries([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="at least one finished run"):
        history.find_final([])


def test_an_unknown_final_run_gets_the_nearest(runs):
    with pytest.raises(ValueError, match="did you mean `blend`"):
        history.find_final(history.read_entries([runs]), "blnd")


def test_decisions_are_read_once_from_all_places(tmp_path):
    rows = "id,action,old,new,by,when\na.png,drop,,,ann,2026-01-01\n"
    (tmp_path / "one.csv").write_text(rows)
    (tmp_path / "two.csv").write_text(rows + "b.png,relabel,x,y,ben,2026-01-02\n")
    paths = [tmp_path / name for name in ("one.csv", "two.csv", "gone.csv")]
    found = history.read_decisions(paths)
    assert found["action"].tolist() == ["drop", "relabel"]
    assert history.read_decisions([]).empty


def test_the_words_count_what_is_there(runs, labels):
    entries, gains = measure(runs, labels)
    log, alone = history.tabulate(entries), history.list_uncompared(entries)
    told = history.describe_way(log, gains, alone)
    assert "**10 runs**, 20:00 min" in told
    assert "from 0.600 (*base*) to 0.825 (*blend*)" in told
    assert "3 helped, 1 did harm, 1 cannot be told from nothing, and 2 cannot" in told


def test_the_way_shows_scored_runs_and_the_best_so_far(runs):
    ax = journey.plot_way(history.tabulate(history.read_entries([runs])))
    steps = next(line for line in ax.lines if line.get_label() == "best so far")
    assert list(steps.get_ydata())[0] == 0.6
    assert np.all(np.diff(steps.get_ydata()) >= 0)
    assert len(ax.get_xticklabels()) == 9


def test_the_cost_has_a_bar_for_each_outcome(runs, labels):
    entries, gains = measure(runs, labels)
    cost = history.count_cost(history.tabulate(entries), gains)
    ax = journey.plot_cost(cost)
    assert len(ax.patches) == len(cost)
    plt.close("all")
