"""The ladder: a rung runs only if the one below it gained, and says why if not."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from toys import write_notebook

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import manifest
from sketchlib.training import predictions
from sketchlib.workbook import cli, ladder, outcomes, parameters, plan, runner

PARAMETERS = """\
data_dir: str = "data/demo"   # the drawings
runs_dir: str = "runs"        # where runs are written
run_name: str = "toy"         # this run's folder
columns: list[str] = []       # names
audit_run: str = "audit"      # whose folds
"""
PLAN = """\
title: Rungs
parameters: {data_dir: data/demo}
steps:
  - {name: audit, notebook: 01_eda}
  - {name: probe, notebook: 03_train, needs: [audit]}
  - {name: small, notebook: 03_train, needs: [audit, probe]}
  - name: big
    notebook: 03_train
    needs: [audit, small]
    promote: {over: probe, at_least: 0.0}
  - {name: blend, notebook: 03_train, needs: [big]}
  - {name: story, notebook: 03_train, needs: [audit], after: [big]}
"""
EACH = 100


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with notebooks, two classes of drawings' names, and the plan."""
    monkeypatch.setenv("SKETCHBOOK_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("01_eda", "03_train"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", parameters=PARAMETERS)
    (tmp_path / "data" / "demo").mkdir(parents=True)
    rows = [(name, f"{name}/{n}.png", t) for t, name in enumerate("ab")
            for n in range(EACH)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["class_name", "image_path", "target"])
    table.to_csv(tmp_path / "data" / "demo" / "train.csv", index=False)
    (tmp_path / "params" / "workbooks").mkdir(parents=True)
    write_plan(tmp_path, PLAN)
    return tmp_path


def write_plan(root, text):
    (root / "params" / "workbooks" / "rungs.yaml").write_text(text)


def make_oof(root, wrong):
    """Out-of-fold predictions that err on every `wrong`-th picture."""
    table = manifest.read_manifest(root / "data" / "demo")
    labels = table["label"].to_numpy()
    named = np.where(np.arange(len(labels)) % wrong == 0, 1 - labels, labels)
    logits = 4.0 * (np.arange(2) == named[:, None]).astype(np.float32)
    ids = table["image_id"].to_numpy(str)
    folds = np.arange(len(ids)) % 2
    return predictions.Predictions(ids, np.array(["a", "b"]), logits, folds)


@pytest.fixture
def fake(root, monkeypatch):
    """A run writes its record, and the predictions that `errs` gives its name."""
    calls, errs = [], {"probe": 3, "small": 10, "big": 20}

    def run_notebook(job, screen=None, stopper=None):
        name = job.folder.name
        calls.append(name)
        record = {"state": "done", "seconds": 60.0, "parameters": job.values}
        record |= {"finished": str(len(calls)), "notebook": job.notebook.stem}
        record |= {"scores": {"accuracy": 0.9}}
        workspace.write_json(job.folder / "run.json", record | job.facts)
        if name in errs:
            oof = make_oof(root, errs[name])
            predictions.write_predictions(job.folder / "oof.npz", oof)
        return outcomes.Outcome("done", 0, job.folder, 60.0, None)

    monkeypatch.setattr(runner, "run_notebook", run_notebook)
    run_notebook.calls, run_notebook.errs = calls, errs
    return run_notebook


def run_rungs(*arguments):
    return cli.main(["workbook", "rungs", *arguments])


def test_a_gain_that_is_sure_promotes(root, fake, capsys):
    assert run_rungs() == 0
    assert fake.calls == ["audit", "probe", "small", "big", "blend", "story"]
    told = capsys.readouterr().out
    assert "promoted: small against probe +23.5 points" in told
    (decision,) = ladder.read_decisions(root / "runs")
    table = manifest.read_manifest(root / "data" / "demo")
    wanted = scores.compare(make_oof(root, 3), make_oof(root, 10), table)
    assert decision.promoted
    assert (decision.gain, decision.low, decision.high) == pytest.approx(
        (wanted.gain, wanted.low, wanted.high)
    )


def test_a_gain_that_may_be_none_holds_back_what_needs_it_and_nothing_else(
    root, fake, capsys
):
    fake.errs["small"] = 3
    fake.errs["probe"] = 3
    assert run_rungs() == 0
    assert fake.calls == ["audit", "probe", "small", "story"]
    told = capsys.readouterr().out
    assert "big: not run, not promoted: small against probe +0.0 points" in told
    assert "blend: not run, because it needs big" in told
    assert "cannot tell yet" in told
    kept = json.loads((root / "runs" / "big" / ladder.FILE).read_text())
    assert kept["promoted"] is False
    assert not (root / "runs" / "big" / "run.json").exists()


def test_what_is_asked_of_the_gain_decides(root, fake):
    write_plan(root, PLAN.replace("at_least: 0.0", "at_least: 0.2"))
    assert run_rungs() == 0  # gains 23.5 points, but its interval begins below 20
    assert "big" not in fake.calls
    write_plan(root, PLAN.replace("at_least: 0.0", "at_least: 0.1"))
    assert run_rungs() == 0
    assert fake.calls.count("big") == 1
    assert fake.calls.count("small") == 1


def test_a_plan_started_again_decides_the_same(root, fake, capsys):
    fake.errs["small"] = 3
    assert run_rungs() == 0
    before = (root / "runs" / "big" / ladder.FILE).read_bytes()
    assert run_rungs() == 0
    assert fake.calls == ["audit", "probe", "small", "story"]
    assert (root / "runs" / "big" / ladder.FILE).read_bytes() == before
    capsys.readouterr()
    assert run_rungs("--dry-run") == 0
    told = capsys.readouterr().out
    assert "not promoted" in told
    assert "0 to run" in told
    fake.errs["small"] = 10
    assert run_rungs("--force", "small") == 0
    assert fake.calls[-2:] == ["blend", "story"]
    assert "big" in fake.calls


def test_force_runs_a_step_that_is_not_promoted(root, fake):
    fake.errs["small"] = 3
    assert run_rungs("--force", "big") == 0
    assert "big" in fake.calls


def test_rungs_that_cannot_be_compared_fail_in_words_and_others_go_on(
    root, fake, capsys
):
    del fake.errs["probe"]
    assert run_rungs() == 1
    assert fake.calls == ["audit", "probe", "small", "story"]
    assert "`oof.npz` was expected" in capsys.readouterr().err


def test_the_closing_table_says_what_each_rung_cost_and_gained(root, fake, capsys):
    assert run_rungs() == 0
    lines = capsys.readouterr().out.split("rung by rung")[1].splitlines()[1:4]
    assert [line.split()[0] for line in lines] == ["probe", "small", "big"]
    assert "1:00" in lines[0]
    assert "over probe: +23.5 points" in lines[1]
    assert "better" in lines[1]
    assert "over small: +5.0 points" in lines[2]
    table = ladder.tabulate([root / "runs"])
    assert table.loc[0, ["step", "rung", "over", "promoted"]].tolist() == [
        "big", "small", "probe", "yes",
    ]  # fmt: skip
    assert table.loc[0, "minutes"] == 1.0


def test_only_pictures_that_both_predicted_count(root, fake):
    """A run that missed its target after the first fold has predicted half."""
    fake.errs["probe"] = 3
    assert run_rungs() == 0
    folder = root / "runs" / "small"
    whole = predictions.read_predictions(folder / "oof.npz")
    half = whole.fold == 0
    fewer = predictions.Predictions(
        whole.image_ids[half], whole.classes, whole.logits[half], whole.fold[half]
    )
    predictions.write_predictions(folder / "oof.npz", fewer)
    gate = ladder.Gate("small", "probe", 0.0)
    assert ladder.decide("big", gate, root / "runs").images == EACH


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "{over: probe, at",
            "{ovr: probe, at",
            "no setting `ovr`; did you mean `over`",
        ),
        ("{over: probe, at", "{over: prob, at", "`over` of `promote`.*'prob'"),
        ("{over: probe, at", "{over: small, at", "should compare two steps"),
        ("at_least: 0.0", "at_least: 3", "a gain in accuracy from -1 to 1"),
        ("at_least: 0.0", "at_least: true", "a gain in accuracy from -1 to 1"),
        ("promote: {over: probe, at_least: 0.0}", "promote: probe", "must be a dict"),
        ("after: [big]", "after: [bigg]", "comes after `bigg`"),
    ],
)
def test_a_wrong_gate_is_refused_before_any_step(root, fake, old, new, told):
    write_plan(root, PLAN.replace(old, new))
    with pytest.raises(ValueError, match=told):
        plan.read_plan("params/workbooks/rungs.yaml")
    assert run_rungs() == 2
    assert fake.calls == []


class TestShippedPlan:
    def read(self):
        chosen = plan.read_plan(plan.find_plan("ladder"), (), "")
        return {step.name: step for step in chosen.steps}

    def test_a_rung_needs_and_is_compared_with_the_one_before(self):
        steps = self.read()
        rungs = [steps[f"rung{number}"] for number in (1, 2, 3)]
        for below, above in zip(rungs, rungs[1:], strict=False):
            assert below.name in above.needs
            assert above.job.values["baseline"] == below.name
            assert above.job.values["target_accuracy"] > 0
        first = rungs[0].job.values
        assert first["frozen"]
        assert first["bank_views"] > 0

    def test_the_largest_is_promoted_by_rule_and_the_rest_does_not_need_it(self):
        steps = self.read()
        assert steps["rung3"].gate == ladder.Gate("rung2", "rung1", 0.0)
        assert [name for name, step in steps.items() if "rung3" in step.needs] == []
        assert steps["retrospective"].after == ("rung3",)


def test_the_composite_plan_is_a_plan_and_its_ensemble_multiplies_its_runs():
    path = plan.find_plan("attributes")
    steps = {step.name: step.job.values for step in plan.read_plan(path).steps}
    for name in steps["ensemble"]["attribute_runs"]:
        made = manifest.make_columns(steps[name]["columns"]).made_of
        assert made == (name,)
    assert steps["audit"]["group_column"] == "author"
    schema = parameters.read_parameters(parameters.find_notebook("03_train"))
    assert set(yaml.safe_load((path.parent.parent / "03_train/attributes.yaml")
                              .read_text())) <= set(schema)  # fmt: skip
