"""Copies with two labels: each policy teaches what it says, however one trains."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from recipes import make_task

from sketchlib.data import audit, conflicts, duplicates, groups, manifest, splits
from sketchlib.training import folds
from sketchlib.workbook import plan, session

COPIED = "train/stairs/sketch_0.JPEG"  # sketch_1 is its flip
PLANTED = "train/square/sketch_5.JPEG"  # becomes the third copy, with another label


@pytest.fixture
def task(own_world, tmp_path):
    """The tests' drawings with one drawing in two classes, found as 01_eda finds it."""
    shutil.copy(own_world / COPIED, own_world / PLANTED)
    table = manifest.read_manifest(own_world)
    seen = audit.inspect(table, own_world)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    copies = groups.make_groups(pairs, seen.findings, manifest=table)
    together = copies[["image_id"]].assign(group=copies["component"])
    return make_task(
        own_world,
        tmp_path,
        folds=splits.make_folds(table, together, 2, seed=0),
        conflicts=groups.label_conflicts(copies, table),
    )


def taught(task, policy, fold=-1):
    """image_id → {class name: weight} of what trains."""
    train, _, _ = folds.make_examples(dataclasses.replace(task, policy=policy), fold)
    names = np.array(manifest.class_names(task.table))
    rows = zip(train.image_ids, names[train.labels], train.weights, strict=True)
    found = {}
    for image_id, name, weight in rows:
        assert name not in found.setdefault(image_id, {})
        found[image_id][name] = weight
    return found


def test_a_planted_contradiction_is_taught_as_each_policy_says(task):
    members = set(task.conflicts["image_id"])
    assert {COPIED, COPIED.replace("_0", "_1"), PLANTED} <= members
    size = len(members)
    kept = taught(task, "keep")
    assert kept[COPIED] == {"stairs": 1}
    assert kept[PLANTED] == {"square": 1}
    shares = {"stairs": pytest.approx(1 - 1 / size), "square": pytest.approx(1 / size)}
    merged = taught(task, "merge")
    assert all(merged[name] == shares for name in members)
    lighter = taught(task, "down_weight")
    assert lighter[COPIED] == {"stairs": pytest.approx(1 / size)}
    assert lighter[PLANTED] == {"square": pytest.approx(1 / size)}
    dropped = taught(task, "drop")
    assert set(kept) - set(dropped) == members
    for other in set(kept) - members:
        assert merged[other] == lighter[other] == dropped[other] == kept[other]


def test_held_out_copies_are_scored_as_given_and_teach_nothing(task):
    ids = task.folds["image_id"]
    apart = task.folds.assign(group=ids, fold=(ids == PLANTED).astype(int))
    task = dataclasses.replace(task, folds=apart)  # as without `group_copies`
    dropping = dataclasses.replace(task, policy="drop")
    _, valid, _ = folds.make_examples(dropping, 1)
    assert valid.image_ids.tolist() == [PLANTED]
    assert taught(task, "merge", fold=1)[COPIED] == {"stairs": 1}


def test_another_policy_is_another_task_and_every_row_is_predicted(task):
    found = {
        policy: folds.train_fold(dataclasses.replace(task, policy=policy), 0).oof
        for policy in conflicts.POLICIES
    }
    held = {*task.folds.loc[task.folds["fold"] == 0, "image_id"]}
    other = int(task.folds.set_index("image_id").at[PLANTED, "fold"] == 0)
    logits = []
    for policy in conflicts.POLICIES:
        assert {*found[policy].image_ids} == held
        trained = folds.train_fold(dataclasses.replace(task, policy=policy), other)
        logits.append(trained.oof.logits)
    for number, one in enumerate(logits):
        assert not any(np.array_equal(one, two) for two in logits[number + 1 :])


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match=r"`conflicts` must be one of .*'average'"):
        conflicts.teach(np.array([0]), np.array([-1]), "average")


def test_a_question_is_no_contradiction(task):
    asked = task.conflicts.assign(verdict="question")
    assert (conflicts.number_sets(task.table["image_id"], asked) == -1).all()
    none = conflicts.number_sets(task.table["image_id"], pd.DataFrame())
    assert (none == -1).all()


def test_the_notebook_takes_the_contradictions_of_its_audit(task, tmp_path, capsys):
    runs = tmp_path / "runs"
    values = session.read_defaults("03_train")
    values |= {"data_dir": str(tmp_path / "data"), "runs_dir": str(runs)}
    here = session.start("03_train", values)
    assert session.with_conflicts(here, "audit", task, "keep") is task
    (runs / "audit").mkdir()
    table = task.conflicts[["image_id", "copies", "group"]]
    rest = task.table[~task.table["image_id"].isin(table["image_id"])]
    others = rest[["image_id"]].assign(copies=rest["image_id"], group=rest["image_id"])
    both = pd.concat([table, others]).assign(kind="near", score=1.0)
    both.to_csv(runs / "audit" / "groups.csv", index=False)
    made = session.with_conflicts(here, "audit", task, "merge")
    assert made.policy == "merge"
    assert set(made.conflicts["image_id"]) == set(task.conflicts["image_id"])
    told = capsys.readouterr().out
    assert f"1 drawings stand in two classes, as {len(table)} pictures" in told


def test_the_plan_measures_every_policy():
    steps = plan.read_plan("params/workbooks/conflicts.yaml").steps
    asked = {step.job.values.get("conflicts") for step in steps}
    assert asked >= set(conflicts.POLICIES)
