"""Attributes by themselves, and runs of one attribute each joined."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from test_attributes import write_people
from test_scores import make_manifest, make_predictions, shuffle

from sketchlib import workspace
from sketchlib.analysis import composite_scores, scores
from sketchlib.data import attributes
from sketchlib.data import manifest as manifests
from sketchlib.training import predictions as files
from sketchlib.training.predictions import Predictions
from sketchlib.workbook import session as sessions

CLASSES = ["in+l", "in+m", "in+s", "out+l", "out+m", "out+s"]
PARTS = attributes.make_parts(
    ["way", "size"], [["in"] * 3 + ["out"] * 3, ["l", "m", "s"] * 2]
)


@pytest.fixture
def manifest():
    return make_manifest(CLASSES, 15)


@pytest.fixture
def oof(manifest, rng):
    return make_predictions(manifest, CLASSES, rng, skill=1.5)


def split(predictions, attribute):
    """A run of one attribute alone: the sums of the classes' probabilities."""
    return composite_scores.marginalise(predictions, PARTS, attribute, CLASSES)


def test_an_attribute_is_the_sum_of_its_classes(oof):
    made = split(oof, 0)
    assert list(made.classes) == ["in", "out"]
    np.testing.assert_allclose(made.probs[:, 0], oof.probs[:, :3].sum(1), atol=1e-6)
    other = split(oof, 1)
    wanted = oof.probs.reshape(-1, 2, 3).sum(1)
    np.testing.assert_allclose(other.probs, wanted, atol=1e-6)


def test_scores_are_scikit_learns_whatever_the_order(oof, manifest, rng):
    table = composite_scores.score_attributes(shuffle(oof, rng), manifest, PARTS)
    assert table["attribute"].tolist() == ["way", "size", "combined"]
    assert table["values"].tolist() == [2, 3, 6]
    truth = manifest["label"].to_numpy()
    size = oof.probs.reshape(-1, 2, 3).sum(1).argmax(1)
    row = table.set_index("attribute").loc["size"]
    assert row["accuracy"] == pytest.approx((size == truth % 3).mean())
    wanted = metrics.f1_score(truth % 3, size, average="macro")
    assert row["macro_f1"] == pytest.approx(wanted)
    assert row["macro_f1_low"] < row["macro_f1"] < row["macro_f1_high"]
    assert row["chance"] == pytest.approx(1 / 3)
    whole = scores.summarise(oof, manifest)
    last = table.iloc[-1]
    assert last["macro_f1"] == pytest.approx(whole["macro_f1"])
    told = composite_scores.tell(table, PARTS)
    assert "6 classes of way (2) × size (3)" in told
    worst = "way" if table["accuracy"][0] < table["accuracy"][1] else "size"
    assert f"**{worst}**" in told


def test_runs_stand_beside_each_other_the_best_first(oof, manifest, rng):
    better = make_predictions(manifest, CLASSES, rng, skill=4)
    table = composite_scores.score_runs({"a": oof, "b": better}, manifest, PARTS)
    assert table["run"].tolist() == ["b", "a"]
    alone = composite_scores.score_attributes(oof, manifest, PARTS)
    row = table.set_index("run").loc["a"]
    for name, value in zip(alone["attribute"], alone["macro_f1"], strict=True):
        assert row[name] == pytest.approx(value)
    assert row["low"] < row["combined"] < row["high"]


def test_test_rows_stay_without_a_label(manifest):
    test = pd.DataFrame(
        {"image_id": ["test/0"], "path": ["test/0"], "label": [-1], "class_name": [""]}
    ).assign(subset="test")
    both = pd.concat([manifest, test], ignore_index=True)
    table = composite_scores.label_attribute(both, PARTS, 1)
    assert table["label"].tolist()[-1] == -1
    assert set(table["class_name"]) == {"l", "m", "s", ""}


class TestProduct:
    def test_it_is_the_product_of_the_probabilities(self, oof, rng):
        one, two = split(oof, 0), split(oof, 1)
        runs = {"size": shuffle(two, rng), "way": one}
        made = composite_scores.multiply(runs, PARTS, CLASSES)
        assert (made.image_ids == one.image_ids).any()
        order = pd.Index(one.image_ids).get_indexer(made.image_ids)
        way, size = one.probs[order], two.probs[order]
        wanted = way[:, [0, 0, 0, 1, 1, 1]] * size[:, [0, 1, 2, 0, 1, 2]]
        np.testing.assert_allclose(made.probs, wanted, atol=1e-6)
        assert (made.fold == one.fold[order]).all()

    def test_what_does_not_belong_together_is_refused(self, oof):
        one, two = split(oof, 0), split(oof, 1)
        turned = Predictions(two.image_ids, two.classes, two.logits, two.fold[::-1])
        fewer = Predictions(
            *(part[3:] if len(part) > 3 else part for part in
              (two.image_ids, two.classes, two.logits, two.fold))
        )  # fmt: skip
        odd = Predictions(
            two.image_ids, np.array(["l", "m", "x"]), two.logits, two.fold
        )
        for size, told in (
            (turned, "should use the same folds"),
            (fewer, "should predict the same images"),
            (odd, "should know its values l, m, s"),
        ):
            with pytest.raises(ValueError, match=told):
                composite_scores.multiply({"way": one, "size": size}, PARTS, CLASSES)
        with pytest.raises(ValueError, match="a run for each of way, size"):
            composite_scores.multiply({"way": one}, PARTS, CLASSES)

    def test_a_run_says_which_attribute_it_knows(self):
        named = composite_scores.name_attribute(["image_path", "+size"], "s")
        assert named == "size"
        for columns in ([], ["image_path", "way+size"]):
            with pytest.raises(ValueError, match="one attribute each.*but 's' has"):
                composite_scores.name_attribute(columns, "s")


class TestRunsOfOneAttribute:
    @pytest.fixture
    def session(self, tmp_path):
        """Data of people, and a run folder for each of two attributes."""
        rows = [(m, g, "9", "p") for m in ("on", "off") for g in "fm"] * 5
        data = tmp_path / "data"
        data.mkdir()
        write_people(data, rows)
        rng = np.random.default_rng(3)
        for name in ("mask", "gender"):
            columns = ["image_path", f"+{name}"]
            table = manifests.read_manifest(data, manifests.make_columns(columns))
            made = make_predictions(table, manifests.class_names(table), rng)
            fold = np.arange(len(table)) % 2
            made = Predictions(made.image_ids, made.classes, made.logits, fold)
            folder = tmp_path / "runs" / name
            workspace.write_json(
                folder / "run.json", {"parameters": {"columns": columns}}
            )
            files.write_predictions(folder / "oof.npz", made)

        class Run:
            record = {"parameters": {"columns": ["image_path", "mask+gender"]}}

        return sessions.Session(Run, data, tmp_path / "runs")

    def test_they_make_the_classes_of_the_ensembles_own_label(self, session):
        made = sessions.read_product(session, ["gender", "mask"])
        table = manifests.read_manifest(session.data_dir, session.columns)
        assert list(made.classes) == manifests.class_names(table)
        assert list(made.classes) == ["off+f", "off+m", "on+f", "on+m"]
        mask = files.read_predictions(session.runs_dir / "mask" / "oof.npz")
        order = pd.Index(mask.image_ids).get_indexer(made.image_ids)
        off = made.probs[:, :2].sum(axis=1)
        np.testing.assert_allclose(off, mask.probs[order, 0], atol=1e-5)

    def test_one_attribute_alone_does_not_tell_the_classes_apart(self, session):
        with pytest.raises(ValueError, match="have the same mask"):
            sessions.read_product(session, ["mask"])

    def test_a_run_that_is_not_there_is_named(self, session):
        with pytest.raises(FileNotFoundError, match="run 'age' was expected"):
            sessions.read_product(session, ["mask", "age"])
