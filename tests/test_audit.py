"""The audit: a row for every picture, right measures, one pass, a cache that holds."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from sketchlib.data import audit, cache, images, records


def _table(names):
    return pd.DataFrame({"image_id": names, "path": names})


def _house(side=240, ink=20, paper=255):
    picture = np.full((side, side), paper, np.uint8)
    corners = np.array([[0.25, 0.8], [0.25, 0.45], [0.5, 0.2], [0.75, 0.45]]) * side
    closed = np.concatenate([corners, [[0.75 * side, 0.8 * side]]]).astype(np.int32)
    cv2.polylines(picture, [closed], True, ink, max(2, side // 80), cv2.LINE_AA)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One picture of each sort."""
    root = tmp_path_factory.mktemp("pictures")
    house = _house()
    tall = np.full((400, 100), 255, np.uint8)
    cv2.circle(tall, (50, 200), 30, 0, 3)
    framed = house.copy()
    cv2.rectangle(framed, (4, 4), (235, 235), 0, 3)
    lettered = house.copy()
    cv2.putText(lettered, "www.sketches.example", (6, 232), 0, 0.65, 0, 1)
    coloured = np.full((240, 240, 3), 255, np.uint8)
    cv2.circle(coloured, (120, 120), 80, (200, 60, 20), -1)
    pictures = {
        "plain.jpg": house,
        "large.jpg": _house(800),
        "far.jpg": cv2.copyMakeBorder(_house(90), *[355] * 4, 0, value=255),
        "blank.jpg": np.full((240, 240), 255, np.uint8),
        "black.png": np.zeros((240, 240), np.uint8),
        "inverted.jpg": 255 - house,
        "coloured.jpg": coloured,
        "tiny.png": cv2.resize(house, (40, 40), interpolation=cv2.INTER_AREA),
        "tall.jpg": tall,
        "faint.jpg": _house(ink=205),
        "lettered.jpg": lettered,
        "blurred.jpg": cv2.GaussianBlur(house, (0, 0), 9),
        "framed.jpg": framed,
        "speck.png": np.full((1, 1), 255, np.uint8),
        "strip.png": np.full((1, 5000), 255, np.uint8),
        "pole.png": np.zeros((5000, 1), np.uint8),
    }
    for name, pixels in pictures.items():
        cv2.imwrite(str(root / name), pixels)
    whole = (root / "plain.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "nearly.jpg").write_bytes(whole[:-10])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.jpg").write_text("<html>not found</html>")
    (root / "folder.jpg").mkdir()
    return root


@pytest.fixture(scope="module")
def findings(folder):
    names = [*sorted(path.name for path in folder.iterdir()), "missing.jpg"]
    return audit.measure(_table(names), folder).set_index("image_id")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("plain.jpg", ""),
        ("blank.jpg", "blank"),
        ("black.png", "blank;inverted"),
        ("inverted.jpg", "inverted"),
        ("coloured.jpg", "coloured"),
        ("tiny.png", "tiny"),
        ("tall.jpg", "odd_aspect"),
        ("faint.jpg", "low_contrast"),
        ("lettered.jpg", "text"),
        ("framed.jpg", "border"),
        ("speck.png", "blank;tiny"),
        ("strip.png", "blank;tiny;odd_aspect"),
        ("pole.png", "blank;inverted;tiny;odd_aspect"),
    ],
)
def test_each_sort_of_picture_carries_its_flags(findings, name, flags):
    assert findings.loc[name, "flags"] == flags


def test_a_blurred_picture_is_flagged(findings):
    assert "blurred" in findings.loc["blurred.jpg", "flags"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cut.jpg", "truncated"),
        ("nearly.jpg", "truncated"),
        ("empty.jpg", "empty"),
        ("page.jpg", "not a picture"),
        ("folder.jpg", "folder"),
        ("missing.jpg", "does not exist"),
    ],
)
def test_an_unreadable_picture_is_a_row_with_its_problem(findings, name, reason):
    row = findings.loc[name]
    assert not row["readable"]
    assert row["flags"] == "unreadable"
    assert reason in row["problem"]
    assert np.isnan(row["ink"])


def test_measures_describe_the_picture(findings):
    row = findings.loc["plain.jpg"]
    assert (row["width"], row["height"], row["channels"], row["mode"]) == (
        240,
        240,
        1,
        "L",
    )
    assert row["paper"] == 255
    assert row["contrast"] > 200
    assert 0.01 < row["ink"] < 0.06
    box = row[["ink_left", "ink_top", "ink_right", "ink_bottom"]].to_numpy(float)
    assert box == pytest.approx([0.25, 0.2, 0.75, 0.8], abs=0.03)
    assert len(row["sha256"]) == 64


def test_rows_follow_the_manifest_and_workers_change_nothing(folder):
    names = ["tall.jpg", "cut.jpg", "plain.jpg", "coloured.jpg"] * 9
    table = _table(names)
    one, two = (audit.inspect(table, folder, workers=count) for count in (1, 3))
    assert list(one.findings["image_id"]) == names
    pd.testing.assert_frame_equal(one.findings, two.findings)
    assert np.array_equal(one.thumbs, two.thumbs)


def test_ink_maps_keep_the_aspect_and_ignore_polarity_and_paper(folder, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), _house())
    cv2.imwrite(str(tmp_path / "b.png"), 255 - _house())
    cv2.imwrite(str(tmp_path / "c.png"), _house(ink=60, paper=200))
    thumbs = audit.inspect(_table(["a.png", "b.png", "c.png"]), tmp_path).thumbs
    assert thumbs.shape == (3, 2, 96, 96)
    difference = thumbs.astype(int) - thumbs[0].astype(int)
    assert np.abs(difference).mean() < 2


def test_the_pixel_hash_sees_one_pixel_and_not_the_file_format(tmp_path):
    picture = _house()
    changed = picture.copy()
    changed[7, 9] ^= 1
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "b.bmp"), picture)
    cv2.imwrite(str(tmp_path / "c.png"), changed)
    found = audit.measure(_table(["a.png", "b.bmp", "c.png"]), tmp_path)
    hashes = found["pixel_hash"].tolist()
    assert hashes[0] == hashes[1] != hashes[2]
    assert found["sha256"].nunique() == 3


def _refuse(path: Path) -> bytes:
    raise AssertionError(f"{path} was read again")


def test_a_second_pass_reads_no_file(folder, tmp_path, monkeypatch):
    table = _table(["plain.jpg", "coloured.jpg", "cut.jpg"])
    first = audit.inspect(table, folder, cache_dir=tmp_path)
    monkeypatch.setattr(images, "read_bytes", _refuse)
    again = audit.inspect(table, folder, cache_dir=tmp_path)
    pd.testing.assert_frame_equal(first.findings, again.findings)
    assert np.array_equal(first.thumbs, again.thumbs)
    turned = audit.inspect(table.iloc[::-1], folder, cache_dir=tmp_path)
    assert list(turned.findings["image_id"]) == list(table["image_id"])[::-1]
    assert np.array_equal(turned.thumbs, first.thumbs[::-1])


def test_thresholds_change_flags_without_reading(folder, tmp_path, monkeypatch):
    table = _table(["plain.jpg"])
    audit.measure(table, folder, cache_dir=tmp_path)
    monkeypatch.setattr(images, "read_bytes", _refuse)
    strict = audit.Thresholds(tiny_px=500)
    found = audit.measure(table, folder, cache_dir=tmp_path, thresholds=strict)
    assert found["flags"].tolist() == ["tiny"]


def test_only_a_changed_file_is_read_again(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), _house())
    table, store = _table(["a.png", "b.png"]), tmp_path / "cache"
    audit.measure(table, tmp_path, cache_dir=store)
    cv2.imwrite(str(tmp_path / "b.png"), 255 - _house(300))
    read, original = [], images.read_bytes
    monkeypatch.setattr(
        images, "read_bytes", lambda path: read.append(path.name) or original(path)
    )
    found = audit.measure(table, tmp_path, cache_dir=store)
    assert read == ["b.png"]
    assert found["inverted"].tolist() == [False, True]


def test_a_stopped_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), _house(64))
    original, read = images.read_bytes, []

    def stop_at_20(path):
        if len(read) == 20:
            raise KeyboardInterrupt
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(images, "read_bytes", stop_at_20)
    with pytest.raises(KeyboardInterrupt):
        audit.measure(_table(names), tmp_path, cache_dir=tmp_path / "cache", workers=1)
    monkeypatch.setattr(
        images, "read_bytes", lambda path: read.append(path.name) or original(path)
    )
    audit.measure(_table(names), tmp_path, cache_dir=tmp_path / "cache")
    assert sorted(read) == sorted(names)


def test_records_of_other_pictures_and_of_a_killed_pass_are_kept(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        cv2.imwrite(str(tmp_path / name), _house(64))
    store = tmp_path / "cache"
    audit.measure(_table(names[:1]), tmp_path, cache_dir=store)
    with monkeypatch.context() as killed:  # between its work and its end
        killed.setattr(records.Records, "keep", lambda self: None)
        audit.measure(_table(names[1:3]), tmp_path, cache_dir=store)
    assert len(list(store.glob("*.part.npy"))) == 1
    read, original = [], images.read_bytes
    monkeypatch.setattr(
        images, "read_bytes", lambda path: read.append(path.name) or original(path)
    )
    audit.measure(_table(names[2:]), tmp_path, cache_dir=store)
    audit.measure(_table(names), tmp_path, cache_dir=store)
    assert read == ["3.png"]
    assert list(store.glob("*.part.npy")) == []


def test_a_missing_file_is_looked_for_again(tmp_path):
    table, store = _table(["late.png"]), tmp_path / "cache"
    assert not audit.measure(table, tmp_path, cache_dir=store)["readable"][0]
    cv2.imwrite(str(tmp_path / "late.png"), _house())
    assert audit.measure(table, tmp_path, cache_dir=store)["readable"][0]


def test_a_missing_file_does_not_have_the_records_written_anew(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), _house())
    table, store = _table(["a.png", "gone.png"]), tmp_path / "cache"
    audit.measure(table, tmp_path, cache_dir=store)
    (kept,) = store.glob("audit-*.npy")
    before = kept.stat()
    found = audit.measure(table, tmp_path, cache_dir=store)
    assert found["readable"].tolist() == [True, False]
    (kept,) = store.glob("audit-*.npy")
    assert (kept.stat().st_ino, kept.stat().st_mtime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
    )


def test_a_damaged_cache_is_made_anew(folder, tmp_path):
    table = _table(["plain.jpg"])
    first = audit.measure(table, folder, cache_dir=tmp_path)
    (store,) = tmp_path.glob("audit-*.npy")
    store.write_bytes(store.read_bytes()[:5000])
    pd.testing.assert_frame_equal(
        first, audit.measure(table, folder, cache_dir=tmp_path)
    )


def test_the_pass_fills_the_pixel_cache_as_reading_alone_would(folder, tmp_path):
    table = _table(["plain.jpg", "cut.jpg", "coloured.jpg", "large.jpg", "far.jpg"])
    geometry = cache.Geometry(96, "ink", "grey", "white")
    one, two = tmp_path / "one", tmp_path / "two"
    audit.inspect(table, folder, cache_dir=one, geometry=geometry)
    assert cache.cache_paths(table, folder, geometry, one).are_made()
    shared = cache.open_pixels(table, folder, geometry, one)
    alone = cache.open_pixels(table, folder, geometry, two)
    assert np.array_equal(shared.pixels, alone.pixels)
    assert shared.readable.tolist() == [True, False, True, True, True]
    assert [path.name for path in one.glob("*.part*")] == []


def test_a_shrunk_jpeg_and_the_png_made_of_it_have_the_same_pixels(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), _house(700))
    cv2.imwrite(str(tmp_path / "b.jpg"), _house(700, ink=90))
    decoded = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "c.png"), decoded)
    found = audit.measure(_table(["a.jpg", "b.jpg", "c.png"]), tmp_path)
    one, other, again = found["pixel_hash"]
    assert one == again != other


def test_a_pixel_too_faint_for_the_small_view_still_tells_pictures_apart(tmp_path):
    drawn = _house(300)
    changed = drawn.copy()
    changed[7, 9] ^= 1
    for name, pixels in (("a.png", drawn), ("b.bmp", drawn), ("c.png", changed)):
        cv2.imwrite(str(tmp_path / name), pixels)
    found = audit.measure(_table(["a.png", "b.bmp", "c.png"]), tmp_path)
    one, same, other = found["pixel_hash"]
    assert one == same != other


def test_the_same_pixels_are_seen_in_files_that_come_later(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), _house(700))
    data = (tmp_path / "a.jpg").read_bytes()
    note = b"\xff\xfe\x00\x06late"  # a comment changes the file, not the picture
    names, store = ["a.jpg", "b.jpg", "c.jpg"], tmp_path / "cache"
    for count in (2, 3):
        more = note * (count - 1)
        (tmp_path / names[count - 1]).write_bytes(data[:2] + more + data[2:])
        found = audit.measure(_table(names[:count]), tmp_path, cache_dir=store)
        assert found["sha256"].nunique() == count
        assert found["pixel_hash"].nunique() == 1


def test_a_shrunk_picture_measures_as_the_whole_one_does(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), _house(900), [cv2.IMWRITE_JPEG_QUALITY, 95])
    cv2.imwrite(str(tmp_path / "b.png"), _house(900))
    found = audit.inspect(_table(["a.jpg", "b.png"]), tmp_path)
    names = ["width", "height", "paper", "channels", "mode", "flags"]
    assert found.findings[names].nunique().max() == 1
    near = {"brightness": 0.5, "ink": 0.003, "ink_left": 0.01, "blur": 0.05}
    for name, slack in near.items():
        one, two = found.findings[name]
        assert one == pytest.approx(two, abs=slack), name
    difference = found.thumbs[0].astype(int) - found.thumbs[1].astype(int)
    assert np.abs(difference).mean() < 1.5


def test_progress_counts_to_the_end(folder):
    calls = []
    audit.measure(
        _table(["plain.jpg"] * 40), folder, progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == (40, 40)


def test_an_unknown_flag_is_refused(findings):
    with pytest.raises(ValueError, match="`flag` must be one of"):
        audit.flagged(findings, "ugly")
