"""Bounds hold for every answer key that explains the known scores."""

import numpy as np
import pandas as pd
import pytest
from test_ensemble import make_runs, set_winners
from test_scores import CLASSES, make_manifest

from sketchlib.analysis import board, scores


def make_answer(labels):
    paths = [f"{number}.JPEG" for number in range(len(labels))]
    ids = range(len(labels))
    return pd.DataFrame({"ID": ids, "image_path": paths, "target": labels})


class TestBounds:
    def write(self, folder, answers, scored):
        lines = ["file,score"]
        for number, (labels, score) in enumerate(zip(answers, scored, strict=True)):
            make_answer(labels).sample(frac=1, random_state=number).to_csv(
                folder / f"{number}.csv", index=False
            )
            lines.append(f"{number}.csv,{score}")
        (folder / "sent.csv").write_text("\n".join(lines))
        return board.read_known(folder / "sent.csv")

    def test_one_known_file_gives_the_textbook_bounds(self, tmp_path):
        """Accuracy a and agreement s: a + s - 1 at least, a + 1 - s at most."""
        old = np.zeros(100, int)
        new = old.copy()
        new[:20] = 1
        known = self.write(tmp_path, [old], ["0.7000"])
        bounds = board.bound_score(make_answer(new), known, board_share=1.0)
        row = bounds.set_index("file").loc["0.csv"]
        assert row["agreement"] == 0.8
        assert row["low"] == pytest.approx(0.5, abs=1e-3)
        assert row["high"] == pytest.approx(0.9, abs=1e-3)

    def test_the_truth_lies_within_and_more_files_narrow(self, tmp_path):
        rng = np.random.default_rng(0)
        truth = rng.integers(0, 5, 300)

        def guess(share):
            noise = rng.integers(0, 5, 300)
            return np.where(rng.random(300) < share, truth, noise)

        answers = [guess(0.8), guess(0.7), guess(0.6)]
        scored = [f"{(one == truth).mean():.4f}" for one in answers]
        known = self.write(tmp_path, answers, scored)
        unsent = guess(0.75)
        bounds = board.bound_score(make_answer(unsent), known, board_share=1.0)
        table = bounds.set_index("file")
        real = (unsent == truth).mean()
        assert (table["low"] <= real).all()
        assert (table["high"] >= real).all()
        width = table["high"] - table["low"]
        assert width["all"] <= width.drop("all").min() + 1e-9
        wider = board.bound_score(make_answer(unsent), known, board_share=0.5)
        assert (wider["high"] - wider["low"] >= bounds["high"] - bounds["low"]).all()

    def test_a_file_sent_before_has_its_own_score(self, tmp_path):
        labels = np.arange(50) % 3
        known = self.write(tmp_path, [labels], ["0.42"])
        row = board.bound_score(make_answer(labels), known, board_share=1.0).iloc[-1]
        assert row["low"] == pytest.approx(0.42, abs=0.006)
        assert row["high"] == pytest.approx(0.42, abs=0.006)

    def test_scores_that_cannot_be_are_refused(self, tmp_path):
        labels = np.zeros(50, int)
        known = self.write(tmp_path, [labels, labels], ["0.40", "0.60"])
        with pytest.raises(ValueError, match="no answer key gives all"):
            board.bound_score(make_answer(labels), known, board_share=1.0)

    def test_percent_and_missing_files_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="row 0 has '93.4'; write 0.934"):
            self.write(tmp_path, [np.zeros(4, int)], ["93.4"])
        (tmp_path / "lost.csv").write_text("file,score\ngone.csv,0.5\n")
        with pytest.raises(FileNotFoundError, match="names gone.csv"):
            board.read_known(tmp_path / "lost.csv")
        known = self.write(tmp_path, [np.zeros(4, int)], ["0.5"])
        with pytest.raises(ValueError, match="same 5 pictures, but answers 4"):
            board.bound_score(make_answer(np.zeros(5, int)), known, board_share=1.0)


class TestExpectation:
    def test_copies_lift_the_board_and_small_tests_widen(self):
        train = make_manifest(CLASSES, 40)
        oof = make_runs(train, [1.5])["run 0"]
        ids = [f"test/{number}.JPEG" for number in range(100)]
        rows = pd.DataFrame({"image_id": ids, "path": ids, "label": -1})
        test = rows.assign(class_name="", subset="test")
        manifest = pd.concat([train, test], ignore_index=True)
        found = board.expect_score(oof, manifest, copied=20).set_index("kind")
        honest, flattered = found.loc["honest"], found.loc["board-like"]
        value = scores.summarise(oof, manifest)["accuracy"]
        assert honest["score"] == value
        assert flattered["score"] == pytest.approx(0.2 + 0.8 * value)
        least = 1.96 * np.sqrt(value * (1 - value) / 100)
        assert honest["high"] - honest["low"] > 2 * least * 0.99
        assert flattered["high"] - flattered["low"] < honest["high"] - honest["low"]

    def test_only_crossing_copies_count_and_each_picture_once(self):
        pairs = pd.DataFrame(
            {
                "image_id_a": ["train/a", "train/b", "test/1", "test/2"],
                "image_id_b": ["test/1", "train/c", "train/d", "test/3"],
            }
        )
        assert board.count_copied(pairs) == 1


def test_the_most_disputed_picture_comes_first():
    runs = {
        "a": set_winners([0, 1, 2, 3]),
        "b": set_winners([0, 1, 2, 0]),
        "c": set_winners([0, 1, 1, 1]),
    }
    table = board.find_disputed(runs, 4)
    assert table["image_id"].tolist()[:2] == ["test/3.JPEG", "test/2.JPEG"]
    assert table["votes"].tolist() == [1, 2, 3, 3]
    assert table["classes"].tolist() == [3, 2, 1, 1]
    assert table.loc[0, ["a", "b", "c"]].tolist() == ["d", "a", "b"]
