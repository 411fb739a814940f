import numpy as np
import pandas as pd
import pytest

from sketchlib.data import splits


def make_table(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    return pd.DataFrame(
        {
            "image_id": [f"train/{number}" for number in range(len(labels))],
            "label": labels,
            "class_name": [f"class {label}" for label in labels],
            "subset": "train",
        }
    )


def test_a_group_never_spans_folds_and_classes_stay_even(rng):
    table = make_table([40] * 10)
    groups = table[["image_id"]].assign(group=rng.integers(0, 250, len(table)))
    folds = splits.make_folds(table, groups, 5, seed=0)
    splits.check_folds(folds, table)
    assert (folds.groupby("group")["fold"].nunique() == 1).all()
    share = pd.crosstab(table["label"], folds["fold"].to_numpy())
    assert share.min().min() >= 4
    assert share.max().max() <= 12


def test_the_same_seed_gives_the_same_folds_and_another_does_not():
    table = make_table([20] * 4)
    one = splits.make_folds(table, None, 4, seed=1)["fold"]
    assert one.equals(splits.make_folds(table, None, 4, seed=1)["fold"])
    assert not one.equals(splits.make_folds(table, None, 4, seed=2)["fold"])


def test_f5_small_classes_get_a_notice_and_not_a_trace():
    table = make_table([20, 20, 1, 2])
    folds = splits.make_folds(table, None, 5, seed=0)
    splits.check_folds(folds, table)
    assert sorted(folds["fold"].unique()) == [0, 1, 2, 3, 4]
    assert "2 classes are missing from some fold" in folds.attrs["notices"][0]


def test_fewer_groups_than_folds_is_refused():
    table = make_table([3, 3])
    with pytest.raises(ValueError, match="lower `folds`"):
        splits.make_folds(table, None, 7, seed=0)


def test_folds_of_other_data_are_refused():
    table = make_table([6, 6])
    folds = splits.make_folds(table, None, 2, seed=0)
    with pytest.raises(ValueError, match="1 have none"):
        splits.check_folds(folds.iloc[1:], table)
    with pytest.raises(ValueError, match="has two"):
        splits.check_folds(pd.concat([folds, folds.head(1)]), table)
    torn = folds.assign(group="one")
    with pytest.raises(ValueError, match="stay in one fold"):
        splits.check_folds(torn, table)


def test_a_fraction_is_stratified_keeps_groups_whole_and_grows():
    labels = np.repeat(np.arange(5), 40)
    groups = np.array([f"{label}-{n // 3}" for label in range(5) for n in range(40)])
    half = splits.take_fraction(labels, groups, 0.5, seed=1)
    counts = np.bincount(labels[half])
    assert (abs(counts - 20) <= 2).all()
    for group in np.unique(groups):
        assert half[groups == group].all() or not half[groups == group].any()
    assert splits.take_fraction(labels, groups, 1.0, seed=1).all()
    tiny = splits.take_fraction(labels, groups, 0.01, seed=1)
    assert set(labels[tiny]) == set(range(5))
    assert half[tiny].all()
    assert (half != splits.take_fraction(labels, groups, 0.5, seed=2)).any()


# --- hold-out and joined groups -----------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5])
def test_a_hold_out_is_fold_zero_and_of_the_size_asked(share, rng):
    table = make_table([40] * 5)
    groups = table[["image_id"]].assign(group=rng.integers(0, 120, len(table)))
    folds = splits.make_hold_out(table, groups, share, seed=0)
    splits.check_folds(folds, table)
    assert set(folds["fold"]) == {0, splits.HOLD_OUT}
    assert (folds["fold"] == 0).mean() == pytest.approx(share, abs=0.05)
    assert (folds.groupby("group")["fold"].nunique() == 1).all()


def test_a_hold_out_names_the_classes_it_misses():
    table = make_table([20, 20, 1, 1])
    folds = splits.make_hold_out(table, None, 0.2, seed=0)
    missed = table.merge(folds[folds["fold"] == 0], on="image_id")["class_name"]
    absent = {f"class {n}" for n in range(4)} - set(missed)
    told = folds.attrs["notices"]
    assert bool(told) == bool(absent)
    assert all(name in told[0] for name in absent)


def test_a_hold_out_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at most 0.5"):
        splits.make_hold_out(make_table([9, 9]), None, 0.7, seed=0)


def test_joined_groups_keep_both_groupings_whole(rng):
    ids = [f"train/{n}" for n in range(200)]
    copies = pd.DataFrame({"image_id": ids, "group": rng.integers(0, 120, 200)})
    persons = pd.DataFrame({"image_id": ids[:90], "group": rng.integers(0, 60, 90)})
    joined = splits.join_groups(copies, persons).set_index("image_id")["group"]
    for table in (copies, persons):
        named = table.assign(joined=table["image_id"].map(joined))
        assert (named.groupby("group")["joined"].nunique() == 1).all()
    assert set(joined.index) == set(ids)
    lone = splits.join_groups(
        pd.DataFrame({"image_id": ["a", "b"], "group": ["1", "2"]}),
        pd.DataFrame({"image_id": ["b", "c"], "group": ["1", "1"]}),
    )
    assert lone["group"].tolist() == ["a", "b", "b"]


def test_a_column_of_persons_is_read_and_empty_cells_are_no_group(own_world):
    from sketchlib.data import manifest

    path = own_world / "train.csv"
    train = pd.read_csv(path)
    train["artist"] = ["", " ann ", *["bob"] * (len(train) - 2)]
    train.to_csv(path, index=False)
    found = manifest.read_groups(own_world, "artist")
    assert found["group"].value_counts().to_dict() == {"bob": 46, "ann": 1}
    assert set(found["image_id"]) <= set(manifest.read_manifest(own_world)["image_id"])
    with pytest.raises(ValueError, match="is `artist` it"):
        manifest.read_groups(own_world, "artis")
