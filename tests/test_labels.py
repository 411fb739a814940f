"""Planted label errors stand first, and their neighbours are of both classes."""

import numpy as np
import pandas as pd
import pytest
from test_scores import CLASSES, make_manifest, make_predictions

from sketchlib import workspace
from sketchlib.analysis import calibration, labels
from sketchlib.workbook import review

pytest.importorskip("cleanlab")


@pytest.fixture
def planted():
    """400 pictures, 12 of them filed under the next class."""
    manifest = make_manifest(CLASSES, 50)
    oof = make_predictions(manifest, CLASSES, np.random.default_rng(0), skill=4.5)
    wrong = np.random.default_rng(1).choice(400, 12, replace=False)
    moved = manifest.copy()
    moved.loc[wrong, "label"] = (manifest.loc[wrong, "label"] + 1) % 8
    moved["class_name"] = np.array(CLASSES)[moved["label"]]
    return oof, moved, manifest, set(manifest.loc[wrong, "image_id"])


def test_planted_errors_lead_the_list(planted):
    oof, moved, manifest, wrong = planted
    found = labels.find_suspects(oof, moved, 100)
    assert found.columns.tolist() == labels.COLUMNS
    top = found.head(12)
    precision = top["image_id"].isin(wrong).mean()
    assert precision >= 0.9, f"precision of the top 12 is {precision:.2f}"
    real = manifest.set_index("image_id")["class_name"]
    hits = top[top["image_id"].isin(wrong)]
    assert (hits["suggested"] == hits["image_id"].map(real)).mean() > 0.9
    assert found["score"].is_monotonic_increasing
    assert (found["given"] != found["suggested"]).all()


def test_overlapping_classes_are_the_mixed_ones(planted):
    oof, _, manifest, _ = planted
    moved = manifest.copy()
    rows = moved.index[moved["class_name"] == CLASSES[2]][:15]
    moved.loc[rows, ["label", "class_name"]] = [5, CLASSES[5]]
    pair = labels.find_overlaps(oof, moved, 3).iloc[0]
    assert {pair["class_a"], pair["class_b"]} == {CLASSES[2], CLASSES[5]}
    assert pair["images"] >= 10


def test_neighbours_are_trusted_pictures_of_both_classes(planted):
    oof, moved, _, _ = planted
    found = labels.find_suspects(oof, moved, 10)
    near = labels.find_neighbours(found, oof, moved, each=2)
    assert near.groupby("image_id").size().tolist() == [4] * len(found)
    names = moved.set_index("image_id")["class_name"]
    assert (near["neighbour"].map(names) == near["class_name"]).all()
    assert not near["neighbour"].isin(found["image_id"]).any()


def test_each_fold_is_scaled_by_the_others():
    manifest = make_manifest(CLASSES, 50)
    oof = make_predictions(manifest, CLASSES, np.random.default_rng(0), skill=1.5)
    loud = calibration.apply_temperature(oof, 0.3)
    scaled = calibration.calibrate(loud, manifest)
    assert (scaled.labels == oof.labels).all()
    assert calibration.error(scaled, manifest) < 0.5 * calibration.error(loud, manifest)
    plain = calibration.calibrate(oof, manifest)
    np.testing.assert_allclose(scaled.probs, plain.probs, atol=0.02)


def test_the_review_takes_up_the_newest_list_of_its_audit(planted, tmp_path):
    oof, moved, _, _ = planted
    found = labels.find_suspects(oof, moved, 5)
    for name, audit in (("evaluate", "audit"), ("stranger", "another")):
        (tmp_path / name).mkdir()
        workspace.write_json(
            tmp_path / name / "run.json", {"parameters": {"audit_run": audit}}
        )
        rows = found if name == "evaluate" else found.assign(image_id="train/x")
        rows.to_csv(tmp_path / name / "label_suspects.csv", index=False)
    (tmp_path / "audit").mkdir()
    asked = review._read_suspects(tmp_path / "audit")
    assert asked["image_id"].tolist() == found["image_id"].tolist()
    assert asked["suggestion"].tolist() == found["suggested"].tolist()
    assert asked["suspicion"].is_monotonic_decreasing
    assert review._read_suspects(tmp_path / "evaluate") is None


def make_filed(folders, per_class=10):
    """`image_id, path, class_name` of two classes; `folders` names each row's."""
    names = np.repeat(["cat", "dog"], per_class)
    ids = [f"{folder}/{row}.png" for row, folder in enumerate(folders(names))]
    return pd.DataFrame({"image_id": ids, "path": ids, "class_name": names})


def test_a_label_against_its_folder_is_doubted():
    table = make_filed(lambda names: names)
    table.loc[3, "class_name"] = "dog"
    (found,) = labels.find_misfiled(table).to_dict("records")
    assert found["image_id"] == table.loc[3, "image_id"]
    assert (found["class_name"], found["suggestion"]) == ("dog", "cat")
    assert found["own"] == 0 and found["other"] == found["suspicion"] == 1
    assert found["source"] == "folder"


@pytest.mark.parametrize(
    "folders",
    [
        lambda names: ["train"] * len(names),
        lambda names: [f"batch{row % 3}" for row in range(len(names))],
        lambda names: [f"{name}{row // 2}" for row, name in enumerate(names)],
    ],
)
def test_folders_that_do_not_hold_classes_say_nothing(folders):
    table = make_filed(folders)
    table.loc[3, "class_name"] = "dog"
    found = labels.find_misfiled(table)
    assert found.empty
    assert "suspicion" in found


def test_the_review_says_who_doubts():
    rows = pd.DataFrame({"image_id": ["a", "b"], "suggestion": "cat"})
    rows = rows.assign(suspicion=[0.5, 0.9], source=["neighbours", "folder"])
    told = [review._suspect_item(row).why for row in rows.to_dict("records")]
    assert told == ["its neighbours are cat", "the others of its folder are cat"]
