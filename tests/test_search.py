"""A search is judged on rows it was not fitted on, and finds what was planted."""

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from test_ensemble import make_runs
from test_scores import CLASSES, make_manifest, make_predictions, shuffle

from sketchlib.analysis import calibration, combiners, ensemble, joining, scores, search
from sketchlib.data import decisions
from sketchlib.training.predictions import Predictions

FITTED = ["tempered", "weights", "greedy", "per_class", "stack"]


@pytest.fixture
def manifest():
    return make_manifest(CLASSES, 20)


@pytest.fixture
def runs(manifest):
    return make_runs(manifest, (1.0, 1.5, 2.0))


def gather(runs, manifest):
    first = next(iter(runs.values()))
    truth = joining.find_truth(first, manifest)
    return combiners.gather(runs, truth, search.outer_parts(first, None))


class TestWhatIsRecommended:
    def test_a_useless_member_gets_no_weight_and_a_fit_is_recommended(self):
        manifest = make_manifest(CLASSES, 40)
        runs = make_runs(manifest, (2.5, 2.5, -2.0, -2.0))
        found = search.search_methods(runs, manifest)
        assert found.recommended in FITTED
        assert "better" in found.verdict
        for method in ("weights", "greedy"):
            weights = found.weights(method)
            assert sum(weights.values()) == pytest.approx(1)
            assert weights["run 2"] + weights["run 3"] < 0.02
        chosen = found.table.set_index("method")["recommended"]
        assert chosen[chosen].index.tolist() == [found.recommended]

    def test_it_is_not_optimistic_on_pure_noise(self):
        """Runs without skill: fitted weights look good only where they were fitted."""
        fitted, nested = [], {name: [] for name in FITTED}
        for seed in range(6):
            manifest = make_manifest(CLASSES, 25)
            runs = make_runs(manifest, [0.0] * 12, seed=seed)
            found = search.search_methods(runs, manifest)
            table = found.table.set_index("method")["accuracy"]
            fitted.append(found.path["accuracy"].iloc[-1] - 1 / 8)
            for name in FITTED:
                nested[name].append(table[name] - 1 / 8)
            assert found.recommended == "soft"
        assert np.mean(fitted) > 0.03
        for name in FITTED:
            assert abs(np.mean(nested[name])) < 0.025, name

    def test_equal_runs_leave_nothing_to_choose(self, runs, manifest):
        same = dict.fromkeys("abc", runs["run 2"])
        found = search.search_methods(same, manifest)
        assert found.recommended == "soft"
        plain = found.table["method"].isin(["", *ensemble.METHODS, "greedy", "weights"])
        assert found.table.loc[plain, "accuracy"].nunique() == 1
        assert (found.table.loc[plain, "gain"] == 0).all()


class TestTheTable:
    def test_it_is_made_of_scores(self, runs, manifest):
        found = search.search_methods(runs, manifest)
        table = found.table.set_index("name")
        methods = [*ensemble.METHODS, *FITTED]
        names = [search.NAMES[method] for method in methods]
        assert table.index.tolist() == [*runs, *names]
        for name, run in [*runs.items(), ("soft vote", ensemble.blend(runs))]:
            summary = scores.summarise(run, manifest, draws=10)
            assert table.loc[name, "accuracy"] == summary["accuracy"]
            assert table.loc[name, "log_loss"] == pytest.approx(
                summary["log_loss"], abs=1e-5
            )
        for method in methods:
            summary = scores.summarise(found.oof[method], manifest, draws=10)
            row = table.loc[search.NAMES[method]]
            assert row["accuracy"] == summary["accuracy"]
            change = scores.compare(ensemble.blend(runs), found.oof[method], manifest)
            assert row["gain"] == pytest.approx(change.gain)
            assert row["gain_low"] == pytest.approx(change.low)
            told = "reference" if method == "soft" else change.verdict
            assert row["verdict"] == told

    def test_shuffled_rows_change_nothing(self, runs, manifest):
        rng = np.random.default_rng(5)
        mixed = {name: shuffle(run, rng) for name, run in runs.items()}
        mixed["run 0"] = runs["run 0"]  # the first gives the order of rows
        one = search.search_methods(runs, manifest)
        other = search.search_methods(mixed, manifest)
        pd.testing.assert_frame_equal(one.table, other.table, rtol=1e-4)


class TestFits:
    def test_shares_are_the_likeliest_mixture(self, runs, manifest):
        """Expectation maximisation reaches what scipy's constrained optimum is."""
        rows = gather(runs, manifest)
        everything = np.ones(len(manifest), bool)
        own = rows.probs[:, 0].astype(float)

        def loss(weights):
            return -np.log(weights @ own).mean()

        best = optimize.minimize(
            loss,
            np.full(3, 1 / 3),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        )
        shares = combiners.fit_shares(rows, everything).weights
        assert shares.min() >= 0
        assert shares.sum() == pytest.approx(1)
        assert loss(shares) == pytest.approx(best.fun, abs=2e-3)

    def test_a_class_specialist_gets_weight_in_its_class(self):
        manifest = make_manifest(CLASSES, 60)
        runs = make_runs(manifest, (1.0, 1.0))
        logits = runs["run 1"].logits.copy()
        rows = (manifest["class_name"] == CLASSES[3]).to_numpy()
        logits[rows, 3] += 4.0
        first = runs["run 0"]
        runs["run 1"] = Predictions(first.image_ids, first.classes, logits, first.fold)
        rule = combiners.fit_class_shares(
            gather(runs, manifest), np.ones(len(manifest), bool)
        )
        assert rule.weights.shape == (2, 8)
        np.testing.assert_allclose(rule.weights.sum(axis=0), 1, atol=1e-6)
        assert rule.weights[1].argmax() == 3
        assert rule.weights[1, 3] > 0.7

    def test_temperature_first_mends_a_run_that_shouts(self, runs, manifest):
        loud = calibration.apply_temperature(runs["run 0"], 0.4)
        rows = gather({"a": runs["run 0"], "loud": loud}, manifest)
        rule = combiners.fit_tempered(rows, np.ones(len(manifest), bool))
        plain = calibration.fit_temperature(runs["run 0"], manifest)
        assert rule.temperatures[0] == pytest.approx(plain, rel=0.08)
        assert rule.temperatures[1] == pytest.approx(plain / 0.4, rel=0.15)

    def test_stacking_is_a_geometric_mean_that_may_unlearn_a_run(self, manifest):
        runs = make_runs(manifest, (2.0, 2.0, -1.5))
        rule = combiners.fit_stack(gather(runs, manifest), np.ones(len(manifest), bool))
        assert rule.stacked
        assert rule.weights[:2].min() > 0.3
        assert rule.weights[2] < 0

    def test_the_few_rivals_decide_as_all_classes_do(self):
        names = [f"class {number:03d}" for number in range(60)]
        manifest = make_manifest(names, 8)
        rng = np.random.default_rng(6)
        runs = {
            str(number): make_predictions(manifest, names, rng, skill=2, folds=1)
            for number in range(6)
        }
        rows = gather(runs, manifest)
        hits, loss = combiners.score_sums(rows.probs.sum(axis=0), 6)
        summary = scores.summarise(ensemble.blend(runs), manifest, draws=10)
        assert hits / len(manifest) == summary["accuracy"]
        assert loss == pytest.approx(summary["log_loss"], abs=1e-5)

    def test_greedy_is_the_plain_search_over_all_classes(self, manifest):
        """Step by step as one would write it down, with every class."""
        runs = make_runs(manifest, (1.0, 1.2, 1.4, 0.8))
        labels = manifest["label"].to_numpy()
        probs = [run.probs for run in runs.values()]
        total, expected, reached = np.zeros_like(probs[0]), [], []
        for step in range(1, 13):
            merits = []
            for one in probs:
                mean = (total + one) / step
                own = mean[np.arange(len(labels)), labels]
                hits = (mean.argmax(axis=1) == labels).sum()
                merits.append(hits + np.log(own).mean() / 1e3)
            expected.append(int(np.argmax(merits)))
            reached.append(max(merits))
            total += probs[expected[-1]]
        expected = expected[: int(np.argmax(reached)) + 1]
        rows = gather(runs, manifest)
        assert combiners.select_greedily(rows.probs, 12) == expected


class TestBudget:
    SECONDS = {"run 0": 1.0, "run 1": 5.0, "run 2": 30.0}

    def search(self, runs, manifest, budget):
        limits = search.Limits(steps=10, seconds=self.SECONDS, budget=budget)
        return search.search_methods(runs, manifest, limits=limits)

    @pytest.mark.parametrize("budget", [1.0, 6.0, 36.0])
    def test_its_members_fit_the_time(self, runs, manifest, budget):
        found = self.search(runs, manifest, budget)
        weights = found.weights("budget")
        used = sum(self.SECONDS[name] for name, share in weights.items() if share)
        assert 0 < used <= budget
        assert "within the time budget" in found.table["name"].tolist()

    def test_more_time_never_fits_worse(self, runs, manifest):
        rows = gather(runs, manifest)
        everything, costs = np.ones(len(manifest), bool), np.array([1.0, 5.0, 30.0])
        hits = []
        for budget in (1.0, 30.0, 36.0):
            rule = combiners.fit_budget(rows, everything, costs, budget)
            chosen = rows.probs[rule.weights > 0].sum(axis=0)
            hits.append(combiners.score_sums(chosen, len(rule.path))[0])
        assert hits == sorted(hits)

    def test_no_time_and_no_seconds_are_refused(self, runs, manifest):
        with pytest.raises(
            ValueError, match="fit 0.5 seconds, but the fastest takes 1"
        ):
            self.search(runs, manifest, 0.5)
        limits = search.Limits(seconds={"run 0": 1.0}, budget=3.0)
        with pytest.raises(ValueError, match="\\['run 1', 'run 2'\\] have none"):
            search.search_methods(runs, manifest, limits=limits)


class TestApplying:
    @pytest.mark.parametrize("method", [*ensemble.METHODS, *FITTED])
    def test_the_same_pictures_get_the_fit_on_all_rows(self, runs, manifest, method):
        found = search.search_methods(runs, manifest)
        rng = np.random.default_rng(1)
        columns = rng.permutation(8)
        first = runs["run 0"]
        mixed = {
            name: Predictions(
                run.image_ids, run.classes[columns], run.logits[:, columns], run.fold
            )
            for name, run in reversed(runs.items())
        }
        one = found.predict(method, runs)
        other = joining.align_classes(found.predict(method, mixed), first.classes)
        np.testing.assert_allclose(one.probs, other.probs, atol=1e-5)
        assert (one.labels == manifest["label"]).mean() > 0.5

    def test_other_runs_are_refused(self, runs, manifest):
        found = search.search_methods(runs, manifest)
        with pytest.raises(ValueError, match="the runs searched were"):
            found.predict("soft", {"run 0": runs["run 0"]})


class TestParts:
    def test_a_single_fold_is_split_by_groups(self, manifest):
        run = make_predictions(manifest, CLASSES, np.random.default_rng(7), folds=1)
        groups = pd.DataFrame(
            {"image_id": run.image_ids, "group": np.arange(len(manifest)) // 4}
        )
        parts = search.outer_parts(run, groups)
        assert len(np.unique(parts)) == 5
        assert pd.Series(parts).groupby(groups["group"]).nunique().max() == 1

    def test_one_group_alone_cannot_be_searched(self, manifest):
        run = make_predictions(manifest, CLASSES, np.random.default_rng(8), folds=1)
        groups = pd.DataFrame({"image_id": run.image_ids, "group": 1})
        with pytest.raises(ValueError, match="all 160 pictures are one group"):
            search.search_methods({"a": run}, manifest, groups)


def test_pictures_the_review_dropped_count_in_no_score(runs, manifest):
    gone = manifest.index % 7 == 0
    reviewed = manifest.assign(
        subset=manifest["subset"].where(~gone, decisions.DROPPED)
    )
    reviewed.attrs = manifest.attrs
    rest = {
        name: Predictions(
            run.image_ids[~gone], run.classes, run.logits[~gone], run.fold[~gone]
        )
        for name, run in runs.items()
    }
    one = search.search_methods(runs, reviewed)
    other = search.search_methods(rest, manifest)
    pd.testing.assert_frame_equal(one.table, other.table)
    pd.testing.assert_frame_equal(
        ensemble.leave_one_out(runs, reviewed), ensemble.leave_one_out(rest, manifest)
    )
    pd.testing.assert_frame_equal(
        ensemble.rescues(runs, reviewed), ensemble.rescues(rest, manifest)
    )
