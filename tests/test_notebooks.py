"""The notebooks, 01 to 05, on the tests' own drawings, as a plan and by papermill."""

import itertools
import json
import re
import shutil
import subprocess
import sys

import pandas as pd
import papermill
import pytest
import yaml

from sketchlib import workspace
from sketchlib.training import predictions
from sketchlib.workbook import cli, parameters


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke") / "runs"
    asked = ["workbook", "params/workbooks/smoke.yaml", "-p", "data_dir", str(world)]
    assert cli.main([*asked, "--runs", str(folder)]) == 0
    return folder


def test_the_fixed_names_are_there(runs):
    for name in (
        "audit/findings.csv",
        "audit/folds.csv",
        "submission.csv",
        "index.html",
    ):
        assert (runs / name).is_file(), name
    for name in ("run.json", "metrics.jsonl", "oof.npz", "test.npz", "03_train.html"):
        assert (runs / "one" / name).is_file(), name


def test_no_report_shows_a_warning(runs):
    executed = [*runs.glob("*/[0-9]*.ipynb")]
    assert len(executed) >= 5
    for path in executed:
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            told = [out for out in cell.get("outputs", []) if out.get("name")]
            text = "".join("".join(out["text"]) for out in told)
            assert "Warning" not in text, f"{path.parent.name}: {text[-500:]}"


def test_the_submission_has_the_samples_form(runs, world):
    made = pd.read_csv(runs / "submission.csv")
    sample = pd.read_csv(world / "sample_submission.csv")
    assert list(made.columns) == list(sample.columns)
    assert made["image_path"].tolist() == sample["image_path"].tolist()
    assert made["target"].between(0, 3).all()


def test_copies_share_a_fold_and_the_unreadable_picture_is_kept(runs):
    folds = pd.read_csv(runs / "audit" / "folds.csv").set_index("image_id")
    exact = folds.loc[["train/circle/sketch_0.JPEG", "train/circle/sketch_1.JPEG"]]
    flipped = folds.loc[["train/stairs/sketch_0.JPEG", "train/stairs/sketch_1.JPEG"]]
    assert exact["fold"].nunique() == exact["group"].nunique() == 1
    assert flipped["fold"].nunique() == flipped["group"].nunique() == 1
    assert len(folds) == 48
    findings = pd.read_csv(runs / "audit" / "findings.csv").set_index("image_id")
    assert not findings.loc["train/square/sketch_3.JPEG", "readable"]
    assert "blank" in findings.loc["train/cross/sketch_2.JPEG", "flags"]


def test_the_ensemble_is_the_mean_of_its_members(runs):
    one, two, both = (
        predictions.read_predictions(runs / name / "test.npz").probs
        for name in ("one", "two", "ensemble")
    )
    weights = workspace.read_json(runs / "ensemble" / "run.json")["weights"]
    mean = weights["one"] * one + weights["two"] * two
    assert abs(mean - both).max() < 1e-5


def test_every_run_says_done_and_what_it_was_asked(runs):
    for name in ("audit", "augmentation", "one", "two", "evaluate", "ensemble"):
        record = workspace.read_json(runs / name / "run.json")
        assert record["state"] == "done", name
        assert record["parameters"]["run_name"] == name


def test_the_reports_ask_for_nothing_remote(runs):
    pages = [runs / "index.html", *runs.glob("*/*.html")]
    assert len(pages) == 8  # the index, six runs, the classes of the audit
    for page in pages:
        text = page.read_text()
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", text), page.name
        assert "@import" not in text
        assert not re.search(r"url\([\"']?(https?:)?//", text), page.name


def test_written_variants_train_and_are_counted(runs):
    counted = pd.DataFrame(workspace.read_json(runs / "two" / "run.json")["extra"])
    assert set(counted["source"]) == {"variant: canny", "variant: hstack"}
    assert not workspace.read_json(runs / "one" / "run.json")["extra"]


def test_a_second_time_nothing_runs(runs, world, capsys):
    asked = ["workbook", "params/workbooks/smoke.yaml", "-p", "data_dir", str(world)]
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*.ipynb")}
    assert cli.main([*asked, "--runs", str(runs)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in runs.glob("*/*.ipynb")}


def test_the_retrospective_tells_what_was_tried(runs, world, tmp_path):
    asked = ["run", "07_retrospective", "-p", "data_dir", str(world)]
    asked += ["-p", "runs_dirs", f"['{runs}']", "--runs", str(tmp_path / "mine")]
    assert cli.main(asked) == 0
    folder = tmp_path / "mine" / "retrospective"
    log = pd.read_csv(folder / "log.csv")
    assert set(log["run"]) >= {"audit", "one", "two", "ensemble"}
    gains = pd.read_csv(folder / "gains.csv").set_index("run")
    assert gains["baseline"]["ensemble"] in ("one", "two")
    parents = pd.read_csv(folder / "parents.csv")
    assert set(parents["parent"]) == {"one", "two", "audit", "augmentation"}
    assert workspace.read_json(folder / "run.json")["final"] == "ensemble"


def test_classes_made_of_columns_are_learned_attribute_by_attribute(
    runs, own_world, tmp_path
):
    train = pd.read_csv(own_world / "train.csv")
    train["shape"] = (
        train["class_name"]
        .isin(["circle", "square"])
        .map({True: "closed", False: "open"})
    )
    train["corners"] = (
        train["class_name"]
        .isin(["square", "stairs"])
        .map({True: "some", False: "none"})
    )
    train = train.drop(columns=["class_name", "target"])
    train.to_csv(own_world / "train.csv", index=False)
    shutil.copytree(runs / "audit", tmp_path / "runs" / "audit")
    asked = ["run", "03_train", "-f", "params/03_train/smoke.yaml"]
    for name, value in {
        "data_dir": own_world,
        "columns": "[image_path, shape+corners]",
        "targets": "per_attribute",
        "run_name": "apart",
    }.items():
        asked += ["-p", name, str(value)]
    assert cli.main([*asked, "--runs", str(tmp_path / "runs")]) == 0
    folder = tmp_path / "runs" / "apart"
    oof = predictions.read_predictions(folder / "oof.npz")
    assert list(oof.classes) == [
        "closed+none", "closed+some", "open+none", "open+some",
    ]  # fmt: skip
    table = pd.read_csv(folder / "attributes.csv").set_index("attribute")
    assert list(table.index) == ["shape", "corners", "combined"]
    truth = train.assign(image_id="train/" + train["image_path"]).set_index("image_id")
    closed = oof.probs[:, :2].sum(axis=1) > 0.5
    right = closed == (truth.loc[oof.image_ids, "shape"] == "closed").to_numpy()
    assert table.loc["shape", "accuracy"] == pytest.approx(right.mean())
    record = workspace.read_json(folder / "run.json")
    assert [row["attribute"] for row in record["attributes"]] == list(table.index)


def test_bare_papermill_runs_a_notebook(world, tmp_path):
    out = tmp_path / "02.ipynb"
    papermill.execute_notebook(
        str(parameters.find_notebook("02_augmentation")),
        str(out),
        parameters={
            "data_dir": str(world),
            "runs_dir": str(tmp_path / "runs"),
            "recipes": ["flip"],
            "pictures": 1,
            "side_px": 32,
        },
        progress_bar=False,
    )
    assert json.loads(out.read_text())["metadata"]["papermill"]["exception"] is None
    record = workspace.read_json(tmp_path / "runs" / "augmentation" / "run.json")
    assert record["state"] == "done"


@pytest.mark.slow
def test_bare_papermill_runs_every_notebook_in_order(world, tmp_path):
    """The commands a user types who does not know `sketch`."""
    given = {"data_dir": str(world), "runs_dir": str(tmp_path / "runs")}
    smoke = workspace.repo_root() / "params"
    plan = yaml.safe_load((smoke / "workbooks" / "smoke.yaml").read_text())["steps"]
    plan += [
        {"name": "tune", "notebook": "06_tune", "file": "params/06_tune/smoke.yaml"},
        {"name": "retrospective", "notebook": "07_retrospective"},
    ]
    for step in plan:
        values = given | {"run_name": step["name"]} | step.get("parameters", {})
        if step["name"] == "tune":
            values |= {"trials": 2, "transfer_model": ""}
        file = ["-f", step["file"]] if "file" in step else []
        words = [
            [*("-y", yaml.safe_dump({name: value}))] for name, value in values.items()
        ]
        notebook = parameters.find_notebook(step["notebook"])
        out = tmp_path / f"{step['name']}.ipynb"
        asked = [sys.executable, "-m", "papermill", str(notebook), str(out)]
        done = subprocess.run(
            [*asked, *file, *itertools.chain(*words)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        record = workspace.read_json(tmp_path / "runs" / step["name"] / "run.json")
        assert record["state"] == "done", step["name"]
