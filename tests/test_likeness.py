import numpy as np
import pandas as pd
import pytest

from sketchlib.analysis import leakage, likeness

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


def make_world(rng, *, each=40, spread=1.0, width=12):
    """Blobs: features (N, D) of five classes, each picture its own group."""
    centres = rng.normal(size=(len(CLASSES), width)) * 3
    labels = np.repeat(np.arange(len(CLASSES)), each)
    seen = centres[labels] + rng.normal(size=(len(labels), width)) * spread
    table = pd.DataFrame(
        {
            "image_id": [f"train/{n}" for n in range(len(labels))],
            "label": labels,
            "class_name": np.array(CLASSES)[labels],
            "subset": "train",
        }
    )
    return seen.astype(np.float32), table


def test_planted_wrong_labels_come_first_with_the_right_suggestion(rng):
    seen, table = make_world(rng)
    wrong = [3, 50, 130]
    true = table.loc[wrong, "class_name"].tolist()
    table.loc[wrong, "class_name"] = ["dog", "ant", "bee"]
    near, cosine = likeness.find_neighbours(seen, table["image_id"], count=10)
    found = likeness.suspect_labels(table, near)
    assert set(found["image_id"].head(3)) == {f"train/{n}" for n in wrong}
    given = found.set_index("image_id")["suggestion"]
    assert [given[f"train/{n}"] for n in wrong] == true
    assert (np.diff(cosine, axis=1) <= 1e-6).all()


def test_neighbours_agree_with_brute_force_and_copies_never_vouch(rng):
    seen, table = make_world(rng, each=30)
    groups = np.array(table["image_id"], object)
    groups[:6] = "one drawing"
    near, cosine = likeness.find_neighbours(seen, groups, count=5)
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    for row in (0, 5, 77):
        all_cosines = unit @ unit[row]
        all_cosines[groups == groups[row]] = -2
        best = np.sort(all_cosines)[::-1][:5]
        assert np.allclose(cosine[row], best, atol=1e-5)
        assert not (groups[near[row]] == groups[row]).any()


def test_planted_twin_classes_are_the_most_mixed(rng):
    seen, table = make_world(rng)
    bees, cats = (table["class_name"] == name for name in ("bee", "cat"))
    seen[cats] += seen[bees].mean(axis=0) - seen[cats].mean(axis=0)
    near, _ = likeness.find_neighbours(seen, table["image_id"], count=10)
    found = likeness.twin_classes(table, near)
    first, second = found.iloc[0], found.iloc[1] if len(found) > 1 else None
    assert {first["class_a"], first["class_b"]} == {"bee", "cat"}
    assert first["mixing"] > 0.3
    assert second is None or second["mixing"] < 0.1
    confused = pd.DataFrame(
        {"class_name": ["ant"], "predicted": ["eel"], "rate": [0.9]}
    )
    both = likeness.twin_classes(table, near, confused=confused)
    pair = both[(both["class_a"] == "ant") & (both["class_b"] == "eel")]
    assert pair["confusion"].tolist() == [0.45]


@pytest.mark.parametrize(("shift", "differs"), [(0.0, False), (0.8, True)])
def test_adversarial_validation_finds_a_planted_shift_only(rng, shift, differs):
    seen, table = make_world(rng, each=60)
    is_test = rng.random(len(seen)) < 0.4
    seen[is_test, 0] += shift * 3
    found = likeness.compare_subsets(seen, is_test, table["image_id"], seed=0)
    assert (found.low > 0.5) == differs
    assert found.low <= found.auc <= found.high
    assert ("differ" in found.text) == differs
    if differs:
        assert found.scores[is_test].mean() > found.scores[~is_test].mean() + 0.05


# --- leakage ------------------------------------------------------------------------


def with_copies(rng, share):
    """Noisy blobs where `share` of the rows are near-exact copies of others."""
    seen, table = make_world(rng, each=60, spread=9.0, width=60)
    groups = table[["image_id"]].assign(group=table["image_id"])
    for label in range(len(CLASSES)):
        rows = np.flatnonzero(table["label"] == label)
        half = int(len(rows) * share / 2)
        for original, copy in zip(rows[:half], rows[half : 2 * half], strict=True):
            seen[copy] = seen[original] + rng.normal(size=seen.shape[1]) * 0.05
            groups.loc[copy, "group"] = groups.loc[original, "group"]
    seen = (seen - seen.mean(axis=0)) / seen.std(axis=0)
    return leakage.Data(table, seen.astype(np.float32), groups, folds=4, seed=0)


def test_copies_flatter_plain_folds_and_the_gap_is_found(rng, monkeypatch):
    monkeypatch.setattr(likeness, "ALPHA", 1.0)
    found = leakage.measure(with_copies(rng, 0.8))
    assert found["gap"]["low"] > 0.05
    assert found["board_like"]["accuracy"] > found["honest"]["accuracy"] + 0.05
    assert found["copied"]["board_like"] > found["copied"]["honest"] + 0.1
    assert found["copied"]["images"] == 240
    assert "copies flatter it" in leakage.tell(found)
    assert "On the 240 drawings with a copy" in leakage.tell(found)
    told = leakage.tell(found | {"column": "author"})
    assert "that keep copies and every `author` together" in told
    assert "with a copy among" not in told  # all of an author's, not copies alone


def test_without_copies_there_is_no_gap(rng):
    found = leakage.measure(with_copies(rng, 0.0))
    assert found["gap"]["low"] <= 0 <= found["gap"]["high"]
    assert found["copied"] == {"images": 0, "board_like": None, "honest": None}
    assert "no flattering is proven" in leakage.tell(found)


def test_the_probe_is_the_ridge_classifier_of_scikit_learn(rng):
    from sklearn.linear_model import RidgeClassifier

    seen, table = make_world(rng, spread=4.0)
    labels = table["label"].to_numpy()
    fold = np.arange(len(labels)) % 2
    predicted = likeness.probe(seen, likeness.one_hot(labels), fold)
    model = RidgeClassifier(likeness.ALPHA / 4)  # targets of ±1 are twice as far apart
    theirs = model.set_params(alpha=likeness.ALPHA).fit(
        seen[fold == 1], labels[fold == 1]
    )
    assert (theirs.predict(seen[fold == 0]) == predicted[fold == 0]).all()


def test_each_policy_teaches_what_it_says():
    labels, sets = np.array([0, 1, 1, 2]), np.array([0, 0, 0, -1])
    targets, weights = leakage.make_targets(labels, sets, "keep")
    assert weights.tolist() == [1, 1, 1, 1]
    assert targets.argmax(axis=1).tolist() == labels.tolist()
    assert leakage.make_targets(labels, sets, "drop")[1].tolist() == [0, 0, 0, 1]
    weights = leakage.make_targets(labels, sets, "down_weight")[1]
    assert weights[:3].sum() == pytest.approx(1)
    merged = leakage.make_targets(labels, sets, "merge")[0]
    assert merged[0] == pytest.approx([1 / 3, 2 / 3, 0])
    assert merged[3].tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="one of"):
        leakage.make_targets(labels, sets, "average")


def test_dropping_planted_contradictions_helps_a_probe_they_spoil(rng, monkeypatch):
    monkeypatch.setattr(likeness, "ALPHA", 1.0)
    data = with_copies(rng, 0.9)
    table, groups = data.table.copy(), data.groups
    sizes = groups.groupby("group")["image_id"].transform("size")
    second = groups["group"].duplicated() & (sizes > 1)
    table.loc[second, "label"] = (table.loc[second, "label"] + 1) % len(CLASSES)
    rows = table[sizes.to_numpy() > 1]
    conflicts = rows.assign(copies=groups.loc[rows.index, "group"], verdict="conflict")
    spoiled = leakage.Data(table, data.seen, groups, data.folds, data.seed)
    found = leakage.compare_policies(spoiled, conflicts).set_index("policy")
    assert found.loc["keep", "gain"] == 0
    assert found.loc["drop", "trained"] == (sizes == 1).sum()
    assert found["accuracy"].between(0, 1).all()
    questions = conflicts.assign(verdict="question")
    same = leakage.compare_policies(spoiled, questions)
    assert same["policy"].tolist() == ["keep"]
