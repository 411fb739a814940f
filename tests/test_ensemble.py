"""Blends obey their algebra, a search does not flatter itself, a submission fits."""

import numpy as np
import pandas as pd
import pytest
from test_scores import CLASSES, make_manifest, make_predictions, shuffle

from sketchlib.analysis import board, calibration, ensemble, scores
from sketchlib.data import manifest as manifests
from sketchlib.training import predictions as prediction_files
from sketchlib.training.predictions import Predictions


@pytest.fixture
def manifest():
    return make_manifest(CLASSES, 20)


@pytest.fixture
def runs(manifest):
    return make_runs(manifest, (1.0, 1.5, 2.0))


def make_runs(manifest, skills, seed=0):
    """One run per skill over the same folds."""
    rng = np.random.default_rng(seed)
    made = [make_predictions(manifest, CLASSES, rng, skill=skill) for skill in skills]
    fold = made[0].fold
    return {
        f"run {number}": Predictions(one.image_ids, one.classes, one.logits, fold)
        for number, one in enumerate(made)
    }


def set_winners(labels, classes=4, strength=9.0):
    """Predictions that are sure of the given labels."""
    logits = np.zeros((len(labels), classes), np.float32)
    logits[np.arange(len(labels)), labels] = strength
    ids = np.array([f"test/{number}.JPEG" for number in range(len(labels))])
    names = np.array(list("abcdefgh")[:classes])
    return Predictions(ids, names, logits, np.full(len(labels), -1))


class TestBlend:
    def test_equal_weights_are_the_mean(self, runs):
        blended = ensemble.blend(runs)
        mean = np.mean([run.probs for run in runs.values()], axis=0)
        np.testing.assert_allclose(blended.probs, mean, atol=1e-6)
        joined = prediction_files.average(list(runs.values()))
        np.testing.assert_allclose(blended.probs, joined.probs, atol=1e-6)

    @pytest.mark.parametrize("how", ensemble.METHODS)
    def test_equal_runs_change_nothing(self, runs, how):
        one = runs["run 2"]
        blended = ensemble.blend({"a": one, "b": one, "c": one}, how=how)
        assert (blended.labels == one.labels).all()
        if how in ("soft", "geometric"):
            np.testing.assert_allclose(blended.probs, one.probs, atol=1e-6)

    @pytest.mark.parametrize("how", ensemble.METHODS)
    def test_shuffled_rows_and_columns_change_nothing(self, runs, how):
        rng = np.random.default_rng(3)
        mixed = {name: shuffle(run, rng) for name, run in runs.items()}
        mixed["run 0"] = runs["run 0"]
        expected = ensemble.blend(runs, how=how)
        found = ensemble.blend(mixed, how=how)
        assert found.image_ids.tolist() == expected.image_ids.tolist()
        np.testing.assert_allclose(found.probs, expected.probs, atol=1e-6)

    @pytest.mark.parametrize("how", ensemble.METHODS)
    def test_all_weight_on_one_run_is_that_run(self, runs, how):
        weights = {"run 0": 0.0, "run 1": 3.0, "run 2": 0.0}
        blended = ensemble.blend(runs, weights, how)
        assert (blended.labels == runs["run 1"].labels).all()

    def test_weights_are_scaled_and_do_what_they_say(self, runs):
        weights = {"run 0": 2.0, "run 1": 1.0, "run 2": 1.0}
        expected = sum(
            share / 4 * run.probs
            for share, run in zip((2, 1, 1), runs.values(), strict=True)
        )
        found = ensemble.blend(runs, weights).probs
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_the_geometric_mean_is_the_mean_of_logarithms(self, runs):
        logs = np.mean([np.log(run.probs) for run in runs.values()], axis=0)
        powers = np.exp(logs)
        expected = powers / powers.sum(axis=1, keepdims=True)
        found = ensemble.blend(runs, how="geometric").probs
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_the_majority_wins_against_one_loud_voice(self):
        quiet = set_winners([2], strength=1.2)
        runs = {"a": quiet, "b": quiet, "loud": set_winners([1], strength=30.0)}
        assert ensemble.blend(runs, how="hard").labels.tolist() == [2]
        assert ensemble.blend(runs, how="soft").labels.tolist() == [1]

    @pytest.mark.parametrize("how", ensemble.METHODS)
    @pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 0), (2, 1)])
    def test_a_perfect_tie_goes_to_the_first_run_not_to_a_number(
        self, first, second, how
    ):
        runs = {"a": set_winners([first]), "b": set_winners([second])}
        assert ensemble.blend(runs, how=how).labels.tolist() == [first]

    def test_a_split_vote_goes_to_the_surer_side(self):
        sure, unsure = set_winners([3], strength=9.0), set_winners([0], strength=2.0)
        for runs in ({"a": unsure, "b": sure}, {"b": sure, "a": unsure}):
            assert ensemble.blend(runs, how="hard").labels.tolist() == [3]

    def test_ranks_do_not_hear_how_loud_a_run_is(self, runs):
        loud = {
            name: calibration.apply_temperature(run, 0.3) for name, run in runs.items()
        }
        expected = ensemble.blend(runs, how="rank")
        found = ensemble.blend(loud, how="rank")
        # Ties are tipped by a thousandth of the mean probability, which does hear.
        np.testing.assert_allclose(found.probs, expected.probs, atol=1e-3)

    def test_unknown_methods_and_weights_are_refused(self, runs):
        with pytest.raises(ValueError, match="`how` should be one of .*'mean' came"):
            ensemble.blend(runs, how="mean")
        with pytest.raises(ValueError, match="`weights` should name the runs"):
            ensemble.blend(runs, {"run 0": 1.0})
        with pytest.raises(ValueError, match="≥ 0 and not all 0"):
            ensemble.blend(runs, dict.fromkeys(runs, 0.0))


def test_agreement_and_rescues_are_shares_of_pictures(runs, manifest):
    same = ensemble.agreement(runs)
    a, b = runs["run 0"], runs["run 1"]
    assert same.loc["run 0", "run 1"] == (a.labels == b.labels).mean()
    assert (np.diag(same) == 1).all()
    np.testing.assert_array_equal(same, same.T)
    labels = manifest["label"].to_numpy()
    saved = (b.labels == labels)[a.labels != labels].mean()
    helped = ensemble.rescues(runs, manifest)
    assert helped.loc["run 0", "run 1"] == pytest.approx(saved)
    assert (np.diag(helped) == 0).all()


@pytest.mark.parametrize("how", ensemble.METHODS)
def test_leaving_one_out_is_the_blend_of_the_others(runs, manifest, how):
    weights = {"run 0": 1.0, "run 1": 2.0, "run 2": 3.0}
    table = ensemble.leave_one_out(runs, manifest, weights=weights, how=how)
    whole = ensemble.blend(runs, weights, how)
    for row in table.itertuples():
        others = {name: run for name, run in runs.items() if name != row.run}
        rest = ensemble.blend(others, {name: weights[name] for name in others}, how)
        change = scores.compare(rest, whole, manifest)
        assert row.adds == pytest.approx(change.gain)
        assert row.low == pytest.approx(change.low)
        assert row.high == pytest.approx(change.high)
        assert row.verdict == change.verdict
        assert row.without == pytest.approx(change.accuracy_a)


def test_all_plain_blends_in_one_pass_are_the_blends(runs):
    found = ensemble.blend_plain(runs)
    assert list(found) == list(ensemble.METHODS)
    for how, one in found.items():
        expected = ensemble.blend(runs, how=how)
        np.testing.assert_allclose(one.probs, expected.probs, atol=1e-6)


def test_folds_vote_before_runs_do(tmp_path):
    """One sure model for c and two unsure ones for a in each of three runs."""
    parts = [set_winners([2]), *[set_winners([0], strength=0.5)] * 2]
    for name in "xyz":
        for number, part in enumerate(parts):
            prediction_files.write_predictions(
                tmp_path / name / f"fold{number}" / "test.npz", part
            )
        whole = ensemble.blend({str(n): part for n, part in enumerate(parts)})
        prediction_files.write_predictions(tmp_path / name / "test.npz", whole)

    def vote(inner, outer):
        votes = {name: ensemble.read_votes(tmp_path / name, inner) for name in "xyz"}
        return ensemble.blend(votes, how=outer).labels.tolist()

    assert vote("soft", "soft") == vote("soft", "hard") == [2]
    assert vote("hard", "soft") == [0]


def test_votes_of_folds_need_the_folds(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(FileNotFoundError, match="fold_vote"):
        ensemble.read_votes(tmp_path / "x", "hard")


class TestSubmission:
    """The user numbers three classes 10, 20 and 40 and mixes the sample's order."""

    GIVEN = (10, 20, 40)

    @pytest.fixture
    def manifest(self):
        train = make_manifest(["a", "b", "c"], 2)
        ids = [f"test/{number}.JPEG" for number in range(4)]
        test = pd.DataFrame(
            {"image_id": ids, "path": ids, "label": -1, "class_name": ""}
        ).assign(subset="test")
        return pd.concat([train, test], ignore_index=True)

    @pytest.fixture
    def test(self):
        return set_winners([0, 2, 1, 2], classes=3)

    @pytest.fixture
    def sample(self):
        paths = ["2.JPEG", "0.JPEG", "3.JPEG", "1.JPEG"]
        return pd.DataFrame({"ID": range(4), "image_path": paths, "target": 0})

    def test_labels_are_the_users_in_the_samples_order(self, test, sample, manifest):
        made = board.make_submission(test, sample, manifest, self.GIVEN)
        assert made.columns.tolist() == ["ID", "image_path", "target"]
        assert made["image_path"].tolist() == sample["image_path"].tolist()
        assert made["target"].tolist() == [20, 10, 40, 40]
        board.check_submission(made, sample, self.GIVEN)

    def test_shuffled_predictions_make_the_same_file(self, test, sample, manifest):
        mixed = shuffle(test, np.random.default_rng(9))
        one = board.make_submission(test, sample, manifest, self.GIVEN)
        other = board.make_submission(mixed, sample, manifest, self.GIVEN)
        pd.testing.assert_frame_equal(one, other)

    def test_without_a_path_column_rows_are_in_test_order(self, test, manifest):
        sample = pd.DataFrame({"ID": [0, 1, 2, 3], "target": [9, 9, 9, 9]})
        made = board.make_submission(test, sample, manifest, self.GIVEN)
        assert made.to_numpy().tolist() == [[0, 10], [1, 40], [2, 20], [3, 40]]

    def test_without_a_sample_the_competitions_columns_are_made(self, test, manifest):
        made = board.make_submission(test, None, manifest, self.GIVEN)
        assert made.columns.tolist() == ["ID", "image_path", "target"]
        assert made["image_path"].tolist() == [f"{n}.JPEG" for n in range(4)]
        assert made["target"].tolist() == [10, 40, 20, 40]
        board.check_submission(made, None, self.GIVEN)

    def test_other_column_names_and_their_order_are_kept(self, test, sample, manifest):
        named = sample.rename(columns={"image_path": "file", "target": "label"})
        named = named[["label", "file", "ID"]]
        columns = manifests.Columns(path="file", label="label")
        made = board.make_submission(test, named, manifest, self.GIVEN, columns)
        assert made.columns.tolist() == ["label", "file", "ID"]
        assert made["label"].tolist() == [20, 10, 40, 40]

    def test_the_file_holds_what_was_made_byte_for_byte(
        self, test, sample, manifest, tmp_path
    ):
        made = board.make_submission(test, sample, manifest, self.GIVEN)
        path = tmp_path / "submission.csv"
        board.write_submission(path, made, sample=sample, given_labels=self.GIVEN)
        assert path.read_bytes() == (
            b"ID,image_path,target\n0,2.JPEG,20\n1,0.JPEG,10\n2,3.JPEG,40\n3,1.JPEG,40\n"
        )

    def test_paths_that_look_like_formulas_stay_as_they_are(self, manifest, tmp_path):
        names = ["=1+1.JPEG", "+2.JPEG", "-3.JPEG", "@4.JPEG"]
        ids = [f"test/{name}" for name in names]
        manifest.loc[manifest["subset"] == "test", "image_id"] = ids
        test = set_winners([0, 1, 2, 0], classes=3)
        test = Predictions(np.array(ids), test.classes, test.logits, test.fold)
        made = board.make_submission(test, None, manifest, self.GIVEN)
        path = tmp_path / "submission.csv"
        board.write_submission(path, made, sample=None, given_labels=self.GIVEN)
        assert pd.read_csv(path)["image_path"].tolist() == names
