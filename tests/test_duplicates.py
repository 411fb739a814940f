"""Duplicates: every planted kind is found and named, and nothing else is merged.

The kinds are planted by `benchmarks/duplicates.py`, which measures them at size.
"""

import cv2
import duplicates as bench
import numpy as np
import pandas as pd
import pytest

from sketchlib.data import audit, duplicates, groups, spectra


def _audit_all(folder, pictures):
    """Write (N,) arrays as PNG and audit them."""
    names = [f"{number:03d}.png" for number in range(len(pictures))]
    for name, pixels in zip(names, pictures, strict=True):
        cv2.imwrite(str(folder / name), pixels)
    return audit.inspect(pd.DataFrame({"image_id": names, "path": names}), folder)


def _find(folder, pictures):
    seen = _audit_all(folder, pictures)
    return duplicates.find_pairs(seen.findings, seen.thumbs)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A hundred drawings, two copies of each: ten or so of every kind."""
    rng = np.random.default_rng(5)
    sources = [bench.draw_sketch(rng, int(rng.integers(220, 330))) for _ in range(100)]
    folder = tmp_path_factory.mktemp("planted") / "set"
    table, truth = bench.plant(folder, sources, 2.2, 3)
    seen = audit.inspect(table, folder)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    return table, truth, seen, pairs


def test_every_kind_is_found(planted):
    _, truth, _, pairs = planted
    scores = bench.score_kinds(pairs, truth)
    assert (truth["planted"].value_counts() >= 9).all()
    assert set(scores.index) == set(bench.ALTERATIONS)
    assert scores["recall"].min() >= 0.90, scores
    assert np.average(scores["recall"], weights=scores["planted"]) >= 0.97, scores


def test_reported_pairs_are_real_and_named_right(planted):
    _, truth, _, pairs = planted
    real = pairs["image_id_a"].map(bench.source_of) == pairs["image_id_b"].map(
        bench.source_of
    )
    assert real.mean() >= 0.95
    assert bench.score_kinds(pairs, truth)["named"].min() >= 0.9


def test_scores_are_correlations_and_pairs_stand_in_order(planted):
    table, _, _, pairs = planted
    row = pd.Series(range(len(table)), index=table["image_id"])
    assert (pairs["image_id_a"].map(row) < pairs["image_id_b"].map(row)).all()
    assert pairs["score"].between(0.97, 1).all()
    assert set(pairs["kind"]) <= set(duplicates.KINDS)
    assert not pairs.duplicated(["image_id_a", "image_id_b"]).any()


def test_one_thread_or_three_find_the_same(planted):
    _, _, seen, pairs = planted
    again = duplicates.find_pairs(seen.findings, seen.thumbs, workers=1)
    pd.testing.assert_frame_equal(pairs, again)


def test_turning_is_what_numpy_does():
    picture = np.arange(12).reshape(3, 4)
    expected = {
        "near": picture,
        "hflip": picture[:, ::-1],
        "vflip": picture[::-1],
        "rot90": np.rot90(picture),
        "rot180": np.rot90(picture, 2),
        "rot270": np.rot90(picture, 3),
        "transpose": picture.T,
        "transverse": np.rot90(picture, 2).T,
    }
    for kind, turned in expected.items():
        assert np.array_equal(duplicates.turn(picture, kind), turned), kind
        back = duplicates.turn(turned, duplicates.inverse_kind(kind))
        assert np.array_equal(back, picture), kind
        for other in expected:
            both = duplicates.turn(turned, other)
            name = duplicates.compose_kinds(kind, other)
            assert np.array_equal(both, duplicates.turn(picture, name)), (kind, other)


# --- what must stay apart ---------------------------------------------------------


def _nearly_white(rng, sort):
    """White paper with grain, a speck or a hair on it."""
    picture = np.full((200, 200), 255, np.uint8)
    if sort == 0:
        grain = rng.normal(0, 2, picture.shape)
        picture = np.clip(252 + grain, 0, 255).astype(np.uint8)
    elif sort == 1:
        cv2.circle(picture, rng.integers(10, 190, 2).tolist(), 2, 60, -1)
    else:
        start = rng.integers(10, 150, 2)
        end = start + rng.integers(-20, 20, 2)
        cv2.line(picture, start.tolist(), end.tolist(), 120, 1)
    return picture


@pytest.mark.parametrize("waves", [4, 8])
def test_no_orientation_gets_above_the_sieve(rng, waves):
    unit = spectra._normalise(rng.standard_normal((60, 12, 12)).astype(np.float32))
    low = spectra._normalise(unit[:, :waves, :waves])
    turned = spectra.oriented(low)  # (8, 60, W·W)
    best = np.einsum("ik,ojk->oij", low.reshape(60, -1), turned).max(axis=0)
    seen = spectra.invariants(unit, waves)
    assert np.allclose(np.linalg.norm(seen, axis=1), 1, atol=1e-5)
    assert (seen @ seen.T >= best - 1e-5).all()
    same = spectra.invariants(turned[:, 0].reshape(8, waves, waves), waves)
    assert np.allclose(same, same[0], atol=1e-5)


def test_nearly_white_pictures_are_not_merged(tmp_path):
    rng = np.random.default_rng(1)
    pairs = _find(tmp_path, [_nearly_white(rng, n % 3) for n in range(200)])
    assert pairs.empty


def _thin_drawing(rng):
    """One to three hairlines on white: most of the picture is paper."""
    picture = np.full((240, 240), 255, np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.integers(20, 220, (int(rng.integers(4, 9)), 2)).astype(np.int32)
        cv2.polylines(picture, [points], False, 40, 1, cv2.LINE_AA)
    return picture


def test_different_thin_drawings_are_not_merged(tmp_path):
    rng = np.random.default_rng(2)
    pictures = [_thin_drawing(rng) for _ in range(150)]
    assert _find(tmp_path, pictures).empty


def test_blank_and_unreadable_pictures_never_pair(tmp_path):
    blank = np.full((100, 100), 255, np.uint8)
    drawing = bench.draw_sketch(np.random.default_rng(0), 200)
    for name, pixels in {
        "a": blank,
        "b": blank,
        "c": 255 - blank,
        "d": drawing,
    }.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
    for name in ("e", "f"):
        (tmp_path / f"{name}.png").write_bytes(b"nothing")
    names = [f"{letter}.png" for letter in "abcdef"]
    seen = audit.inspect(pd.DataFrame({"image_id": names, "path": names}), tmp_path)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    assert pairs.empty
    assert list(pairs.columns) == duplicates.PAIR_COLUMNS
    table = groups.make_groups(pairs, seen.findings)
    assert table["group"].tolist() == names


def test_a_filled_shape_is_told_from_another_by_its_details(tmp_path):
    disc = np.full((240, 240), 255, np.uint8)
    cv2.circle(disc, (120, 120), 90, 0, -1)
    star, cross = disc.copy(), disc.copy()
    cv2.line(star, (120, 70), (120, 170), 255, 12)
    cv2.rectangle(cross, (70, 100), (110, 140), 255, -1)
    assert _find(tmp_path, [disc, star, cross]).empty


def test_no_pictures_and_one_picture_have_no_pairs(planted):
    _, _, seen, _ = planted
    for count in (0, 1):
        pairs = duplicates.find_pairs(seen.findings[:count], seen.thumbs[:count])
        assert pairs.empty


def test_thumbs_of_another_audit_are_refused(planted):
    _, _, seen, _ = planted
    with pytest.raises(ValueError, match="one row per finding"):
        duplicates.find_pairs(seen.findings, seen.thumbs[:-1])


def test_a_callers_candidates_are_verified_too(planted):
    _, _, seen, pairs = planted
    ids = seen.findings["image_id"]
    asked = pd.DataFrame({"image_id_a": [ids[0], ids[1]], "image_id_b": [ids[2], "?"]})
    again = duplicates.find_pairs(seen.findings, seen.thumbs, candidates=asked)
    pd.testing.assert_frame_equal(pairs, again)


def test_neighbours_by_features_are_proposed_once_and_proved_on_ink(
    planted, monkeypatch
):
    _, _, seen, pairs = planted
    near = pairs[~pairs["kind"].isin(["bytes", "pixels"])].iloc[0]
    ids = seen.findings["image_id"].to_numpy()
    features = np.random.default_rng(0).standard_normal((len(ids), 16))
    a, b = (np.flatnonzero(ids == near[f"image_id_{end}"])[0] for end in "ab")
    features[b] = 2 * features[a]
    asked = duplicates.propose_neighbours(ids, features, each=1)
    assert len(asked) < len(ids)
    assert not asked.duplicated().any()
    assert ((asked["image_id_a"] == ids[a]) & (asked["image_id_b"] == ids[b])).any()
    nothing = np.empty((0, 2), np.int32)
    monkeypatch.setattr(duplicates.spectra, "find_candidates", lambda *_: nothing)
    found = duplicates.find_pairs(seen.findings, seen.thumbs, candidates=asked)
    found = found[~found["kind"].isin(["bytes", "pixels"])]
    assert [ids[a], ids[b]] in found[["image_id_a", "image_id_b"]].to_numpy().tolist()
    assert len(found) < len(asked) / 4  # neighbours of noise are refused
    none = duplicates.propose_neighbours(ids, None, each=1)
    assert none.empty


def test_a_large_set_of_one_file_is_listed_against_its_first(tmp_path):
    drawing = bench.draw_sketch(np.random.default_rng(0), 200)
    pairs = _find(tmp_path, [drawing] * 60)
    assert len(pairs) == 59
    assert (pairs["kind"] == "bytes").all()


def test_many_near_copies_stay_together_within_bounded_work(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_TRIED", 5)
    drawing = bench.draw_sketch(np.random.default_rng(4), 240)
    copies = []
    for number in range(60):
        copy = drawing.copy()
        copy[number, :3] = 200
        copies.append(copy)
    seen = _audit_all(tmp_path, copies)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    assert 59 <= len(pairs) < 1200  # of 1,770
    assert groups.make_groups(pairs, seen.findings)["component"].nunique() == 1


# --- groups -----------------------------------------------------------------------


def _world(count, links, labels=None, subsets=None):
    """Findings, pairs and manifest of made-up pictures."""
    ids = [f"{number:02d}" for number in range(count)]
    findings = pd.DataFrame(
        {"image_id": ids, "width": 100, "height": 100, "bytes": 1000}
    )
    rows = [(ids[a], ids[b], kind, score) for a, b, kind, score in links]
    pairs = pd.DataFrame(rows, columns=duplicates.PAIR_COLUMNS)
    labels = labels or [0] * count
    manifest = pd.DataFrame({"image_id": ids, "label": labels})
    manifest["class_name"] = manifest["label"].map("class{}".format)
    manifest["subset"] = subsets or ["train"] * count
    return findings, pairs, manifest


def test_every_picture_has_a_group_named_after_its_first_member():
    findings, pairs, _ = _world(4, [(1, 3, "near", 0.99)])
    table = groups.make_groups(pairs, findings)
    assert table["image_id"].tolist() == ["00", "01", "02", "03"]
    assert table["group"].tolist() == ["00", "01", "02", "01"]
    assert table["keeper"].tolist() == [True, True, True, False]


def test_a_chain_is_split_but_its_component_is_kept():
    chain = [(n, n + 1, "near", 0.98) for n in range(6)]
    findings, pairs, _ = _world(7, chain)
    table = groups.make_groups(pairs, findings)
    assert table["component"].nunique() == 1
    linked = set(pairs[["image_id_a", "image_id_b"]].itertuples(index=False, name=None))
    for _, members in table.groupby("group")["image_id"]:
        ids = sorted(members)
        centres = [
            c
            for c in ids
            if all(c == m or (c, m) in linked or (m, c) in linked for m in ids)
        ]
        assert centres, f"{ids} have no common centre"


def test_the_largest_copy_is_kept():
    findings, pairs, _ = _world(3, [(0, 1, "near", 0.99), (1, 2, "near", 0.99)])
    findings.loc[2, "width"] = 300
    keeper = groups.make_groups(pairs, findings).set_index("image_id")["keeper"]
    assert keeper.tolist() == [False, False, True]
    first = groups.make_groups(pairs, findings, policy="first")
    assert first["keeper"].tolist() == [True, False, False]


def test_relations_are_chained_from_the_keeper():
    links = [(0, 1, "rot90", 0.99), (1, 2, "hflip", 0.98)]
    findings, pairs, _ = _world(3, links)
    findings.loc[0, "bytes"] = 5000
    table = groups.make_groups(pairs, findings)
    chained = duplicates.compose_kinds("rot90", "hflip")
    assert table["kind"].tolist() == ["near", "rot90", chained]
    assert table["score"].tolist() == [1.0, 0.99, 0.98]


def test_a_flip_between_classes_is_a_question_not_a_copy():
    links = [(0, 1, "vflip", 0.999), (2, 3, "near", 0.999), (4, 5, "vflip", 0.999)]
    findings, pairs, manifest = _world(6, links, labels=[0, 1, 0, 1, 2, 2])
    table = groups.make_groups(pairs, findings, manifest=manifest)
    assert table["group"].tolist() == ["00", "00", "02", "02", "04", "04"]
    assert table["copies"].tolist() == ["00", "01", "02", "02", "04", "04"]
    assert table["keeper"].tolist() == [True, True, True, False, True, False]
    found = groups.label_conflicts(table, manifest)
    assert found["image_id"].tolist() == ["00", "01", "02", "03"]
    assert found["verdict"].tolist() == ["question"] * 2 + ["conflict"] * 2


def test_the_same_file_in_two_classes_is_a_conflict_whatever_its_other_copies():
    """The turned copies of 0 are no copies of 1 across classes, but 0 and 1 are."""
    links = [(0, 1, "bytes", 1.0), (0, 2, "rot90", 0.98), (1, 2, "rot90", 0.98)]
    links += [(0, 3, "hflip", 0.98), (1, 3, "hflip", 0.98), (2, 3, "rot270", 0.99)]
    findings, pairs, manifest = _world(4, links, labels=[0, 1, 0, 0])
    table = groups.make_groups(pairs, findings, manifest=manifest)
    assert table["copies"].nunique() == 1
    found = groups.label_conflicts(table, manifest)
    assert found["verdict"].tolist() == ["conflict"] * 4


def test_test_pictures_with_a_copy_in_train_are_listed():
    links = [(0, 2, "hflip", 0.99), (1, 3, "near", 0.99)]
    subsets = ["train", "test", "test", "test"]
    findings, pairs, manifest = _world(4, links, [5, -1, -1, -1], subsets)
    table = groups.make_groups(pairs, findings, manifest=manifest)
    found = groups.train_test_pairs(table, manifest)
    assert found[["test_image_id", "train_image_id", "label"]].to_numpy().tolist() == [
        ["02", "00", 5]
    ]


def test_effective_number_of_drawings_per_class():
    links = [(0, 1, "near", 0.99), (0, 2, "hflip", 0.99), (1, 2, "hflip", 0.99)]
    findings, pairs, manifest = _world(6, links, labels=[0, 0, 0, 0, 1, 1])
    table = groups.make_groups(pairs, findings, manifest=manifest)
    found = groups.distinct_per_class(table, manifest).set_index("label")
    assert found["images"].tolist() == [4, 2]
    assert found["distinct"].tolist() == [2, 2]
    shares = np.array([0.75, 0.25])
    entropy = -(shares * np.log(shares)).sum()
    assert found["effective"].tolist() == pytest.approx([np.exp(entropy), 2])


def test_an_unknown_policy_and_a_foreign_pair_are_refused():
    findings, pairs, _ = _world(2, [(0, 1, "near", 0.99)])
    with pytest.raises(ValueError, match="`policy` must be one of"):
        groups.make_groups(pairs, findings, policy="newest")
    with pytest.raises(ValueError, match="not among them"):
        groups.make_groups(pairs.assign(image_id_b="elsewhere"), findings)
