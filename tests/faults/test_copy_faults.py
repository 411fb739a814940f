"""Faults 19-23: what must be found as a copy, and what must stay apart."""

import cv2
import duplicates as bench
import numpy as np
import pandas as pd
import pytest

from sketchlib.data import audit, duplicates, groups, images, measures, records

NAMED = {  # row 19: what is planted → what it must be called
    "hflip": "hflip",
    "vflip": "vflip",
    "rot90": "rot90",
    "rot180": "rot180",
    "rot270": "rot270",
    "flip + rotated": "hflip",
    "recompressed": "near",
    "resize": "near",
    "margin": "near",
    "thicker": "near",
}
CLAIMED = ["rotated 4-6", "rotated 7-10", "rotated 11-15", "crop", "text"]
EACH = 10
SEEDS = (1, 2, 3)


def plant(folder, kind, seed):
    """Drawings with one copy of a kind each; the pairs that are found."""
    rng = np.random.default_rng(seed)
    names = []
    for number in range(EACH):
        drawing = bench.draw_sketch(rng, 260)
        copy = np.ascontiguousarray(bench.ALTERATIONS[kind](drawing, rng))
        quality = 30 if kind == "recompressed" else 90
        for end, picture in (("a", drawing), ("b", copy)):
            names.append(f"{number}{end}.jpg")
            options = [cv2.IMWRITE_JPEG_QUALITY, quality if end == "b" else 90]
            cv2.imwrite(str(folder / names[-1]), picture, options)
    seen = audit.inspect(pd.DataFrame({"image_id": names, "path": names}), folder)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    assert (pairs["image_id_a"].str[:-5] == pairs["image_id_b"].str[:-5]).all()
    return pairs


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", NAMED, ids=[f"f19-{kind}" for kind in NAMED])
def test_turned_and_altered_copies_are_found_and_named(tmp_path, kind, seed):
    pairs = plant(tmp_path, kind, seed)
    assert len(pairs) >= 0.9 * EACH  # shares at size: benchmarks/duplicates.py
    assert (pairs["kind"] == NAMED[kind]).mean() >= 0.9


def test_thinner_lines_are_found_though_some_lose_all_but_a_disc(tmp_path):
    found = 0
    for seed in SEEDS:
        (tmp_path / str(seed)).mkdir()
        pairs = plant(tmp_path / str(seed), "thinner", seed)
        assert (pairs["kind"] == "near").all()
        found += len(pairs)
    assert found >= 0.9 * EACH * len(SEEDS)


@pytest.mark.parametrize("kind", CLAIMED, ids=[f"f20-{kind}" for kind in CLAIMED])
def test_turned_cropped_and_lettered_copies_are_found(tmp_path, kind):
    pairs = plant(tmp_path, kind, 2)
    print(f"recall of {kind}: {len(pairs) / EACH:.2f}")
    assert len(pairs) >= 0.8 * EACH


@pytest.mark.parametrize("seed", SEEDS)
def test_f21_hairline_drawings_stay_apart_and_their_thinner_copies_together(
    tmp_path, seed
):
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(60):
        drawing = np.full((300, 300), 255, np.uint8)
        for _ in range(int(rng.integers(2, 5))):
            points = rng.integers(30, 270, (int(rng.integers(4, 9)), 2), np.int32)
            cv2.polylines(drawing, [points], False, 40, 2, cv2.LINE_AA)
        pictures += [drawing, bench.ALTERATIONS["thinner"](drawing, rng)]
    seen = audit.inspect(write(tmp_path, pictures), tmp_path)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    ends = [pairs[f"image_id_{end}"].str[:3].astype(int) // 2 for end in "ab"]
    assert (ends[0] == ends[1]).all()
    assert len(pairs) >= 54


def write(folder, pictures):
    names = [f"{number:03d}.png" for number in range(len(pictures))]
    for name, picture in zip(names, pictures, strict=True):
        cv2.imwrite(str(folder / name), picture)
    return pd.DataFrame({"image_id": names, "path": names})


def test_f21_five_hundred_nearly_white_pictures_stay_apart(tmp_path):
    rng = np.random.default_rng(3)
    pictures = []
    for number in range(500):
        picture = np.full((240, 240), 255, np.uint8)
        start = rng.integers(15, 225, 2)
        end = start + rng.integers(-6, 7, 2) * (number % 3)
        cv2.line(picture, start.tolist(), end.tolist(), 90, 1, cv2.LINE_AA)
        pictures.append(picture)
    seen = audit.inspect(write(tmp_path, pictures), tmp_path)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    table = groups.make_groups(pairs, seen.findings)
    assert table["group"].value_counts().max() == 1


def test_f22_conflicts_and_leaks_are_findings(tmp_path):
    rng = np.random.default_rng(4)
    one, two, three = (bench.draw_sketch(rng, 240) for _ in range(3))
    table = write(tmp_path, [one, one[2:, 3:], two, two[:, ::-1], three])
    table["label"] = [0, 1, 0, -1, 1]
    table["class_name"] = ["a", "b", "a", "", "b"]
    table["subset"] = ["train", "train", "train", "test", "train"]
    seen = audit.inspect(table, tmp_path)
    pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
    found = groups.make_groups(pairs, seen.findings, manifest=table)
    conflicts = groups.label_conflicts(found, table)
    assert conflicts["image_id"].tolist() == ["000.png", "001.png"]
    assert conflicts["verdict"].tolist() == ["conflict"] * 2
    crossing = groups.train_test_pairs(found, table)
    assert crossing["test_image_id"].tolist() == ["003.png"]
    assert crossing["train_image_id"].tolist() == ["002.png"]


def test_f23_the_cache_knows_size_time_and_version(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    table = write(tmp_path, [bench.draw_sketch(rng, 100) for _ in range(3)])
    store, read, original = tmp_path / "cache", [], images.read_bytes
    monkeypatch.setattr(
        images, "read_bytes", lambda path: read.append(path.name) or original(path)
    )
    audit.inspect(table, tmp_path, cache_dir=store)
    audit.inspect(table, tmp_path, cache_dir=store)
    assert len(read) == 3
    path = tmp_path / "001.png"
    path.write_bytes(path.read_bytes() + b"\0")
    audit.inspect(table, tmp_path, cache_dir=store)
    assert read[3:] == ["001.png"]
    monkeypatch.setattr(records, "VERSION", records.VERSION + 1)
    audit.inspect(table, tmp_path, cache_dir=store)
    assert len(read) == 7


def test_f23_memory_is_bounded_by_the_record_of_a_picture():
    assert measures.RECORD.itemsize * 25_000 < 600e6
