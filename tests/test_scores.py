"""Scores equal scikit-learn's; intervals, verdicts and tables find what was planted."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics

from sketchlib.analysis import breakdown, calibration, joining, scores
from sketchlib.training.predictions import Predictions


def make_manifest(classes, each):
    """`each` training images per class, labels in the order of `classes`."""
    names = [name for name in classes for _ in range(each)]
    ids = [f"train/{name}/{number}.JPEG" for number, name in enumerate(names)]
    labels = np.repeat(np.arange(len(classes)), each)
    return pd.DataFrame(
        {
            "image_id": ids,
            "path": ids,
            "label": labels,
            "class_name": names,
            "subset": "train",
        }
    )


def make_predictions(manifest, classes, rng, skill=2.0, folds=5):
    """Noisy logits that favour the truth by `skill`."""
    labels = manifest["label"].to_numpy()
    logits = rng.normal(size=(len(labels), len(classes)))
    logits[np.arange(len(labels)), labels] += skill
    fold = rng.permutation(len(labels)) % folds
    ids = manifest["image_id"].to_numpy(str)
    return Predictions(ids, np.array(classes), logits.astype(np.float32), fold)


def send(predictions, manifest, true, predicted):
    """The same predictions with all images of one class called another."""
    rows = (manifest["class_name"] == true).to_numpy()
    logits = predictions.logits.copy()
    logits[rows, list(predictions.classes).index(predicted)] = 20
    return Predictions(
        predictions.image_ids, predictions.classes, logits, predictions.fold
    )


def shuffle(predictions, rng):
    """Rows and columns in another order."""
    rows = rng.permutation(len(predictions.image_ids))
    columns = rng.permutation(len(predictions.classes))
    return Predictions(
        predictions.image_ids[rows],
        predictions.classes[columns],
        predictions.logits[rows][:, columns],
        predictions.fold[rows],
    )


CLASSES = [f"class {letter}" for letter in "abcdefgh"]


@pytest.fixture
def manifest():
    return make_manifest(CLASSES, 20)


@pytest.fixture
def oof(manifest):
    return make_predictions(manifest, CLASSES, np.random.default_rng(1))


def test_scores_are_scikit_learns(oof, manifest):
    truth = manifest["label"].to_numpy()
    found = scores.summarise(oof, manifest, draws=10)
    top5 = metrics.top_k_accuracy_score(truth, oof.probs, k=5)
    assert found["accuracy"] == metrics.accuracy_score(truth, oof.labels)
    assert found["macro_f1"] == metrics.f1_score(truth, oof.labels, average="macro")
    assert found["top5"] == pytest.approx(top5)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, oof.probs))
    assert {"images": 160, "classes": 8, "groups": 160, "folds": 5}.items() <= (
        found.items()
    )


def test_fold_scores_are_those_of_each_fold_alone(oof, manifest):
    table = scores.score_folds(oof, manifest)
    labels = manifest["label"].to_numpy()
    for row in table.itertuples():
        here = oof.fold == row.fold
        right = oof.labels[here] == labels[here]
        assert row.accuracy == pytest.approx(right.mean())
    assert table["images"].sum() == len(labels)
    summary = scores.summarise(oof, manifest, draws=10)
    assert summary["fold_sd"] == pytest.approx(table["accuracy"].std(ddof=1))


def test_per_class_is_scikit_learns_report(oof, manifest):
    table = breakdown.per_class(oof, manifest).set_index("class_name")
    report = metrics.classification_report(
        manifest["label"], oof.labels, target_names=CLASSES, output_dict=True
    )
    for name in CLASSES:
        assert table.loc[name, "recall"] == pytest.approx(report[name]["recall"])
        assert table.loc[name, "precision"] == pytest.approx(report[name]["precision"])
        assert table.loc[name, "f1"] == pytest.approx(report[name]["f1-score"])
    assert table["recall"].is_monotonic_increasing


def test_order_of_rows_and_classes_changes_nothing(oof, manifest):
    other = shuffle(oof, np.random.default_rng(2))
    again = manifest.sample(frac=1, random_state=3)
    first = scores.summarise(oof, manifest)
    assert scores.summarise(other, again) == pytest.approx(first)
    pd.testing.assert_frame_equal(
        breakdown.per_class(oof, manifest), breakdown.per_class(other, again)
    )
    pd.testing.assert_frame_equal(
        breakdown.per_picture(oof, manifest), breakdown.per_picture(other, again)
    )


def test_a_planted_zero_recall_class_is_named_with_what_took_its_place(oof, manifest):
    planted = send(oof, manifest, "class c", "class f")
    found = breakdown.zero_recall(planted, manifest)
    assert found["class_name"].tolist() == ["class c"]
    assert found.loc[0, ["taken_by", "share"]].tolist() == ["class f", 1.0]
    assert breakdown.per_class(planted, manifest).loc[0, "class_name"] == "class c"


def test_a_planted_twin_pair_is_the_worst_pair(oof, manifest):
    planted = send(oof, manifest, "class a", "class h")
    worst = breakdown.worst_pairs(planted, manifest, top=3)
    assert worst.loc[0, ["class_a", "class_b"]].tolist() == ["class a", "class h"]
    assert worst.loc[0, "a_as_b"] == 20
    assert worst.loc[0, "mistakes"] == worst.loc[0, "a_as_b"] + worst.loc[0, "b_as_a"]
    assert len(worst) == 3


def test_a_class_without_images_has_no_recall_and_comes_last(manifest):
    rng = np.random.default_rng(4)
    oof = make_predictions(manifest, CLASSES, rng)
    rows = (manifest["class_name"] != "class b").to_numpy()
    part = Predictions(
        oof.image_ids[rows], oof.classes, oof.logits[rows], oof.fold[rows]
    )
    last = breakdown.per_class(part, manifest).iloc[-1]
    assert last["class_name"] == "class b"
    assert np.isnan(last["recall"])
    assert "class b" not in breakdown.zero_recall(part, manifest)["class_name"].tolist()


def test_bootstrap_agrees_with_the_textbook_interval(manifest):
    classes = CLASSES
    big = make_manifest(classes, 125)
    oof = make_predictions(big, classes, np.random.default_rng(5))
    found = scores.summarise(oof, big, draws=2000)
    hits = round(found["accuracy"] * 1000)
    exact = stats.binomtest(hits, 1000).proportion_ci(method="wilson")
    assert found["accuracy_low"] == pytest.approx(exact.low, abs=0.005)
    assert found["accuracy_high"] == pytest.approx(exact.high, abs=0.005)
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"]


def test_copies_widen_the_interval_when_their_groups_are_known(manifest):
    """Each picture four times over is no more evidence than once."""
    oof = make_predictions(manifest, CLASSES, np.random.default_rng(6))
    many = pd.concat(
        [manifest.assign(image_id=manifest["image_id"] + f"#{n}") for n in range(4)]
    )
    copied = Predictions(
        many["image_id"].to_numpy(str),
        oof.classes,
        np.tile(oof.logits, (4, 1)),
        np.tile(oof.fold, 4),
    )
    groups = many.assign(group=many["image_id"].str.split("#").str[0])
    once = scores.summarise(oof, manifest)
    grouped = scores.summarise(copied, many, groups)
    blind = scores.summarise(copied, many)

    def width(found):
        return found["accuracy_high"] - found["accuracy_low"]

    assert width(grouped) == pytest.approx(width(once), rel=0.05)
    assert width(blind) == pytest.approx(width(once) / 2, rel=0.15)


def test_all_right_is_not_called_certain():
    manifest = make_manifest(["a", "b"], 6)
    sure = make_predictions(manifest, ["a", "b"], np.random.default_rng(7), skill=50)
    found = scores.summarise(sure, manifest)
    assert found["accuracy"] == found["accuracy_high"] == 1
    assert found["accuracy_low"] < 0.9


def test_five_hundred_classes_have_an_interval():
    classes = [f"n{number:08d}" for number in range(500)]
    manifest = make_manifest(classes, 30)
    oof = make_predictions(manifest, classes, np.random.default_rng(8), skill=3)
    found = scores.summarise(oof, manifest)
    assert found["macro_f1_low"] < found["macro_f1"] < found["macro_f1_high"]


class TestTop5:
    def test_ties_are_drawn_by_lot_not_by_class_number(self):
        probs = np.full((1, 20), 0.05)
        hits = [scores._top_hits(probs, np.array([k]), 5)[0] for k in range(20)]
        assert hits == pytest.approx([0.25] * 20)

    def test_fewer_than_five_classes_are_always_among_the_first_five(self):
        manifest = make_manifest(["a", "b", "c"], 4)
        oof = make_predictions(manifest, ["a", "b", "c"], np.random.default_rng(9))
        assert scores.summarise(oof, manifest, draws=10)["top5"] == 1


class TestCalibration:
    def test_honest_probabilities_lie_on_the_diagonal(self):
        rng = np.random.default_rng(10)
        manifest = make_manifest(["a", "b", "c", "d"], 1500)
        probs = rng.dirichlet([0.4] * 4, len(manifest))
        drawn = [rng.choice(4, p=row) for row in probs]
        # Labels drawn from the stated probabilities: calibrated by construction.
        names = np.array(["a", "b", "c", "d"])
        manifest["label"], manifest["class_name"] = drawn, names[drawn]
        oof = Predictions(
            manifest["image_id"].to_numpy(str),
            names,
            np.log(np.maximum(probs, 1e-12)).astype(np.float32),
            np.zeros(len(probs), int),
        )
        table = calibration.reliability(oof, manifest, 10)
        inside = (table["low"] < table["confidence"]) & (
            table["confidence"] < table["high"]
        )
        assert inside.mean() >= 0.7
        assert scores.summarise(oof, manifest, draws=10)["ece"] < 0.02
        assert calibration.fit_temperature(oof, manifest) == pytest.approx(1, abs=0.05)
        hot = calibration.apply_temperature(oof, 1 / 3)
        assert calibration.fit_temperature(hot, manifest) == pytest.approx(3, rel=0.05)

    def test_bins_hold_all_pictures(self, oof, manifest):
        assert calibration.reliability(oof, manifest, 7)["images"].sum() == 160

    def test_a_temperature_of_zero_is_refused(self, oof):
        with pytest.raises(ValueError, match="`temperature` should be above 0, but 0"):
            calibration.apply_temperature(oof, 0)


class TestCompare:
    def test_a_run_against_itself_cannot_be_told(self, oof, manifest):
        found = scores.compare(oof, oof, manifest)
        assert (found.gain, found.low, found.high, found.p_value) == (0, 0, 0, 1)
        assert found.verdict == "cannot tell yet"

    def test_the_mirror_image_is_the_opposite_verdict(self, manifest):
        rng = np.random.default_rng(11)
        weak = make_predictions(manifest, CLASSES, rng, skill=1)
        strong = make_predictions(manifest, CLASSES, rng, skill=4)
        strong = joining.take_images(strong, weak.image_ids)
        strong = Predictions(strong.image_ids, strong.classes, strong.logits, weak.fold)
        there = scores.compare(weak, strong, manifest)
        back = scores.compare(strong, weak, manifest)
        assert (there.verdict, back.verdict) == ("better", "worse")
        assert there.gain == pytest.approx(there.accuracy_b - there.accuracy_a)
        assert there.gain == -back.gain
        assert (there.gained, there.lost) == (back.lost, back.gained)
        assert there.low == pytest.approx(-back.high)
        changed = stats.binomtest(there.gained, there.gained + there.lost)
        assert there.p_value == changed.pvalue
        assert there.text.startswith("better: +")

    def test_five_gains_and_no_loss_are_not_enough(self, manifest):
        """The bootstrap alone would call this better; McNemar's p is 0.06."""
        a = make_predictions(manifest, CLASSES, np.random.default_rng(12), skill=0)
        logits = a.logits.copy()
        wrong = np.flatnonzero(a.labels != manifest["label"])[:5]
        logits[wrong, manifest["label"].to_numpy()[wrong]] = 30
        b = Predictions(a.image_ids, a.classes, logits, a.fold)
        found = scores.compare(a, b, manifest)
        assert (found.gained, found.lost) == (5, 0)
        assert found.low > 0
        assert found.verdict == "cannot tell yet"

    def test_false_alarms_are_rare(self):
        """Runs of equal skill: the verdict speaks in about one of twenty."""
        manifest = make_manifest(["a", "b", "c"], 60)
        spoken = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            a = make_predictions(manifest, ["a", "b", "c"], rng, skill=1)
            b = make_predictions(manifest, ["a", "b", "c"], rng, skill=1)
            b = Predictions(b.image_ids, b.classes, b.logits, a.fold)
            found = scores.compare(a, b, manifest, draws=300)
            spoken += found.verdict != "cannot tell yet"
        assert spoken <= 7

    def test_classes_won_and_lost_add_up(self, oof, manifest):
        planted = send(oof, manifest, "class c", "class f")
        table = breakdown.compare_classes(oof, planted, manifest)
        whole = scores.compare(oof, planted, manifest)
        assert table.loc[0, "class_name"] == "class c"
        assert table["net"].sum() / len(manifest) == pytest.approx(whole.gain)
        assert table["gained"].sum() == whole.gained

    def test_shared_only_compares_what_both_predicted(self, oof, manifest):
        part = joining.take_images(oof, oof.image_ids[:50])
        with pytest.raises(ValueError, match="only in `a` 110"):
            scores.compare(oof, part, manifest)
        found = scores.compare(oof, part, manifest, shared_only=True)
        assert (found.images, found.gain) == (50, 0)


class TestFlags:
    def test_a_model_that_fails_on_watermarks_has_a_row_saying_so(self, oof, manifest):
        rng = np.random.default_rng(13)
        marked = rng.random(len(manifest)) < 0.3
        logits = oof.logits.copy()
        logits[np.arange(160), manifest["label"]] += 20
        logits[marked, 0] = 60
        planted = Predictions(oof.image_ids, oof.classes, logits, oof.fold)
        flags = np.where(marked, "text;coloured", "")
        flags[0] = "tiny"
        findings = manifest[["image_id"]].assign(flags=flags)
        table = breakdown.by_flag(planted, manifest, findings).set_index("flag")
        assert table.index[0] in ("text", "coloured")
        assert table.loc["text", "images"] == marked[1:].sum()
        assert table.loc["text", "gap"] < -0.5
        assert table.loc["text", "high"] < table.loc["(no flag)", "low"]
        assert table.loc["(all)", "images"] == 160

    def test_no_flag_at_all_is_one_plain_row(self, oof, manifest):
        findings = manifest[["image_id"]].assign(flags=None)
        table = breakdown.by_flag(oof, manifest, findings)
        assert table["flag"].tolist() == ["(no flag)", "(all)"]

    def test_pictures_that_were_not_audited_are_named(self, oof, manifest):
        findings = manifest[["image_id"]].assign(flags="").iloc[3:]
        with pytest.raises(ValueError, match="in the findings, but 3 .*run 01_eda"):
            breakdown.by_flag(oof, manifest, findings)


def test_groups_without_an_entry_stand_alone(oof, manifest):
    groups = pd.DataFrame({"image_id": oof.image_ids[:4], "group": [1, 1, 2, 2]})
    codes = scores.group_codes(oof.image_ids, groups)
    assert codes.max() + 1 == 160 - 2
    assert codes[0] == codes[1] != codes[2] == codes[3]


def test_groups_of_other_data_are_refused(oof):
    groups = pd.DataFrame({"image_id": ["train/x"], "group": [1]})
    with pytest.raises(ValueError, match="`groups` should cover .* 160 "):
        scores.group_codes(oof.image_ids, groups)


def test_hangul_names_join_whichever_way_they_are_composed():
    import unicodedata

    names = ["자전거", "집"]
    manifest = make_manifest(names, 5)
    apart = [unicodedata.normalize("NFD", name) for name in names]
    oof = make_predictions(manifest, apart, np.random.default_rng(14), skill=9)
    assert scores.summarise(oof, manifest, draws=10)["accuracy"] == 1


def test_ladder_leaves_out_runs_without_scores(oof, manifest):
    summary = scores.summarise(oof, manifest, draws=10)
    table = scores.make_ladder({"run": summary, "probe": None})
    assert table["name"].tolist() == ["run"]
    assert table.loc[0, "mean"] == summary["accuracy"]
