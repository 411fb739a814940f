import pandas as pd
import pytest

from sketchlib.data import decisions, manifest, splits
from sketchlib.data.decisions import Decision


@pytest.fixture
def path(tmp_path):
    return tmp_path / "beside" / "decisions.csv"


def give(path, *rows):
    for row in rows:
        decisions.append(path, Decision(*row))
    return decisions.read_decisions(path)


def test_what_is_appended_is_read_back_with_who_and_when(path):
    verdicts = give(path, ("train/a, b.JPEG", "relabel", "모자", "=cup()"))
    (one,) = verdicts.standing
    assert (one.id, one.old, one.new) == ("train/a, b.JPEG", "모자", "=cup()")
    assert one.when.endswith("+00:00")
    assert verdicts.labels == {"train/a, b.JPEG": "=cup()"}
    assert not verdicts.notices


def test_an_undo_is_one_more_line_and_brings_back_what_was_before(path):
    verdicts = give(
        path,
        ("x", "relabel", "a", "b"),
        ("x", "relabel", "b", "c"),
        ("x", "undo", "relabel", "c"),
    )
    assert verdicts.labels == {"x": "b"}
    assert len(path.read_text().splitlines()) == 4


def test_the_later_verdict_counts(path):
    verdicts = give(path, ("x", "drop"), ("y", "drop"), ("x", "keep"))
    assert verdicts.dropped == {"y"}
    verdicts = give(path, ("y", "relabel", "a", "b"))
    assert verdicts.dropped == set()
    pair = frozenset("xy")
    assert give(path, ("x", "not_duplicate", "", "y")).pairs[pair] == "not_duplicate"
    assert give(path, ("y", "keep", "", "x")).pairs[pair] == "keep"


def test_a_verdict_that_cannot_be_kept_is_refused(path):
    with pytest.raises(ValueError, match="action must be one of"):
        give(path, ("x", "delete"))
    with pytest.raises(ValueError, match="line break"):
        give(path, ("x\ny", "drop"))
    assert not path.exists()


def test_the_file_lies_beside_the_data_or_where_it_is_told(tmp_path, monkeypatch):
    found = decisions.find_path(tmp_path / "demo")
    assert found == tmp_path / "demo-decisions" / "decisions.csv"
    monkeypatch.setenv(decisions.PLACE, str(tmp_path / "team.csv"))
    assert decisions.find_path(tmp_path / "demo") == tmp_path / "team.csv"


# --- the overlay --------------------------------------------------------------------


def lay(world, path, *rows):
    return decisions.overlay(manifest.read_manifest(world), give(path, *rows))


def test_a_relabel_changes_the_label_and_nothing_else(world, path):
    before = manifest.read_manifest(world)
    after = lay(world, path, ("train/cross/sketch_4.JPEG", "relabel", "", "stairs"))
    changed = after[(after != before).any(axis=1)]
    assert changed["image_id"].tolist() == ["train/cross/sketch_4.JPEG"]
    assert changed[["label", "class_name"]].values.tolist() == [[3, "stairs"]]


def test_a_dropped_picture_leaves_training_and_folds_but_not_the_table(world, path):
    name = "train/circle/sketch_5.JPEG"
    table = lay(world, path, (name, "drop"))
    assert len(table) == len(manifest.read_manifest(world))
    assert name not in set(manifest.train_rows(table)["image_id"])
    assert name not in set(splits.make_folds(table, None, 3, seed=0)["image_id"])
    assert "1 pictures dropped" in table.attrs["notices"][-1]


def test_test_pictures_are_always_predicted(world, path):
    table = lay(
        world, path, ("test/1.JPEG", "drop"), ("test/2.JPEG", "relabel", "", "cross")
    )
    before = manifest.test_rows(manifest.read_manifest(world))
    pd.testing.assert_frame_equal(manifest.test_rows(table), before)
    assert any("cannot be dropped" in one for one in table.attrs["notices"])


def test_a_class_never_loses_its_last_picture(world, path):
    rows = [(f"train/cross/sketch_{n}.JPEG", "drop") for n in range(12)]
    table = lay(world, path, *rows)
    assert manifest.class_names(table) == ["circle", "cross", "square", "stairs"]
    assert any("left without pictures" in one for one in table.attrs["notices"])


def test_refuted_pairs_are_no_pairs_whichever_way_round(path):
    pairs = pd.DataFrame(
        {"image_id_a": ["a", "a"], "image_id_b": ["b", "c"], "kind": "near", "score": 1}
    )
    left = decisions.without_refuted(pairs, give(path, ("b", "not_duplicate", "", "a")))
    assert left["image_id_b"].tolist() == ["c"]
    left = decisions.without_refuted(pairs, give(path, ("a", "keep", "", "b")))
    assert len(left) == 2


def test_data_without_a_pair_of_copies_keep_the_columns_of_pairs():
    none = pd.DataFrame(columns=["image_id_a", "image_id_b", "kind", "score"])
    kept = decisions.without_refuted(none, decisions.Verdicts())
    assert list(kept.columns) == list(none.columns)
    assert len(kept) == 0
