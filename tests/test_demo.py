"""The demo data set: its layout, its sameness, and that its truth is true."""

import os
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("resvg_py", reason="the extra `demo` is not installed")

from sketchlib import workspace
from sketchlib.data import demo, demo_drawing, demo_icons

CLASSES = ("bell", "bin", "key")  # one holds a wrong label, one a contradiction
FLIPS = {"hflip": 1, "vflip": 0, "rot180": -1}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three classes with seed 3: the data folder, the truth folder, the sources."""
    home = tmp_path_factory.mktemp("data")
    places = home / "demo", home / "demo-truth"
    return *places, demo.write_demo(*places, seed=3, classes=CLASSES)


def read_truth(truth, name):
    return pd.read_csv(truth / f"{name}.csv", keep_default_na=False)


def read_grey(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_the_layout_is_the_competitions(written):
    data, truth, _ = written
    train, test = pd.read_csv(data / "train.csv"), pd.read_csv(data / "test.csv")
    sample = pd.read_csv(data / "sample_submission.csv")
    assert list(train) == ["class_name", "image_path", "target"]
    assert list(test) == ["image_path"]
    assert list(sample) == ["ID", "image_path", "target"]
    assert sample["ID"].tolist() == list(range(len(test)))
    assert sample["image_path"].tolist() == test["image_path"].tolist()
    assert test["image_path"].tolist() == [f"{n}.JPEG" for n in range(len(test))]
    assert train["image_path"].str.match(r"(bell|bin|key)/sketch_\d+\.JPEG$").all()
    assert (train["image_path"].str.split("/").str[0] == train["class_name"]).all()
    assert dict(zip(train["class_name"], train["target"], strict=True)) == {
        name: target for target, name in enumerate(CLASSES)
    }
    assert not train["class_name"].is_monotonic_increasing  # shuffled
    for subset, table in (("train", train), ("test", test)):
        files = (data / subset).rglob("*.JPEG")
        names = {path.relative_to(data / subset).as_posix() for path in files}
        assert names == set(table["image_path"])
    assert 0.25 < len(test) / (len(train) + len(test)) < 0.42
    assert not list(data.rglob("*truth*"))


def test_the_same_seed_gives_the_same_bytes(written, tmp_path):
    data, truth, _ = written
    demo.write_demo(tmp_path / "d", tmp_path / "t", seed=3, classes=CLASSES[::-1])
    assert contents(tmp_path / "d") == contents(data)
    assert contents(tmp_path / "t") == contents(truth)


def test_a_drawing_does_not_depend_on_the_other_classes(written, tmp_path):
    data, truth, _ = written
    demo.write_demo(tmp_path / "d", tmp_path / "t", seed=3, classes=["key"])
    here, there = read_truth(truth, "drawings"), read_truth(tmp_path / "t", "drawings")
    both = here.merge(there, on=["set", "name"]).drop_duplicates(
        ["set", "name"], keep=False
    )
    odd = pd.concat(
        [read_truth(truth, "oddities"), read_truth(tmp_path / "t", "oddities")]
    )
    damaged = odd.loc[odd["kind"].isin(["corrupt", "blank"]), "image_id"]
    both = both[~both["image_id_x"].isin(damaged) & ~both["image_id_y"].isin(damaged)]
    assert len(both) > 15
    for row in both.itertuples():
        one, other = data / row.image_id_x, tmp_path / "d" / row.image_id_y
        assert one.read_bytes() == other.read_bytes()


def test_copies_are_what_the_truth_says(written):
    data, truth, _ = written
    copies = read_truth(truth, "copies")
    assert len(copies) == 3 * len(CLASSES) + 1  # and one filed under another class
    sides = copies[["image_id_a", "image_id_b"]].map(lambda name: name.split("/")[0])
    assert (sides["image_id_a"] != sides["image_id_b"]).sum() >= len(CLASSES)
    for row in copies.itertuples():
        first, second = data / row.image_id_a, data / row.image_id_b
        if row.kind == "exact":
            assert first.read_bytes() == second.read_bytes()
        elif row.kind in FLIPS:
            turned = cv2.flip(read_grey(first), FLIPS[row.kind])
            assert correlate(turned, read_grey(second)) > 0.99
        elif row.kind == "rot90":
            turned = np.rot90(read_grey(first))
            assert correlate(turned, read_grey(second)) > 0.99
        elif row.kind in ("recompressed", "resized", "text"):
            assert correlate(read_grey(first), read_grey(second)) > 0.95


def correlate(one, other):
    if one.shape != other.shape:
        other = cv2.resize(other, one.shape[::-1], interpolation=cv2.INTER_AREA)
        one = cv2.GaussianBlur(one, (0, 0), 1)
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("kind", demo_drawing.COPY_KINDS)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_copy_keeps_its_channels_and_is_reproducible(kind, channels):
    picture = np.full((200, 240, *channels), 255, np.uint8)
    picture[40:90, 60:200] = 30
    data = demo_drawing.encode_jpeg(picture, 90)
    copied = demo_drawing.copy_jpeg(data, kind, np.random.default_rng(1))
    assert copied == demo_drawing.copy_jpeg(data, kind, np.random.default_rng(1))
    assert (copied == data) == (kind == "exact")
    shape = cv2.imdecode(np.frombuffer(copied, np.uint8), cv2.IMREAD_UNCHANGED).shape
    assert shape[2:] == channels


def test_wrong_labels_and_test_labels_agree_with_the_drawings(written):
    data, truth, _ = written
    known = {
        tuple(drawing.split(":", 1)): name
        for name, drawings in demo_icons.read_classes().items()
        for drawing in drawings
    }
    drawings = read_truth(truth, "drawings")
    drawings = drawings[drawings["set"] != "sketchbook"]
    shown = {
        row.image_id: known[row.set, row.name]
        for row in drawings.itertuples(index=False)
    }
    wrong = read_truth(truth, "labels").set_index("image_id")
    assert len(wrong) == 2
    train = pd.read_csv(data / "train.csv")
    for row in train.itertuples():
        image_id = f"train/{row.image_path}"
        if image_id in wrong.index:
            assert wrong.loc[image_id].tolist() == [row.class_name, shown[image_id]]
            assert row.class_name != shown[image_id]
        elif image_id in shown:
            assert row.class_name == shown[image_id]
    for row in read_truth(truth, "test").itertuples():
        assert shown[row.image_id] == row.class_name == CLASSES[row.target]


def test_one_file_is_truncated_one_blank_and_all_others_load(written):
    data, truth, _ = written
    odd = read_truth(truth, "oddities")
    (corrupt,) = odd.loc[odd["kind"] == "corrupt", "image_id"]
    (blank,) = odd.loc[odd["kind"] == "blank", "image_id"]
    assert (read_grey(data / blank) == 255).all()
    for path in data.rglob("*.JPEG"):
        with Image.open(path) as image:
            if path == data / corrupt:
                with pytest.raises(OSError, match="truncated"):
                    image.load()
            else:
                image.load()
                assert 150 <= min(image.size) <= max(image.size) <= 430
    inverted = odd.loc[odd["kind"] == "inverted", "image_id"]
    assert all(np.median(read_grey(data / name)) < 60 for name in inverted)


def test_every_drawing_has_a_source_with_a_licence(written):
    data, truth, sources = written
    assert list(sources) == ["set", "name", "author", "licence"]
    assert sources.notna().all(axis=None)
    used = read_truth(truth, "drawings")
    joined = used.astype(str).merge(sources.astype(str), on=["set", "name"])
    assert len(joined) == len(used) == len(list(data.rglob("*.JPEG")))


def test_the_sources_do_not_name_pictures(written):
    assert ".JPEG" not in (written[0] / "SOURCES.csv").read_text()


def test_a_second_call_is_quick_and_changes_nothing(written):
    data, truth, sources = written
    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
    start = time.perf_counter()
    again = demo.write_demo(data, truth, seed=3, classes=CLASSES)
    assert time.perf_counter() - start < 0.5
    pd.testing.assert_frame_equal(again, sources)
    assert before == {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}


def test_a_lost_truth_is_written_again(written, tmp_path):
    data, truth, _ = written
    demo.write_demo(data, tmp_path / "t", seed=3, classes=CLASSES)
    assert contents(tmp_path / "t") == contents(truth)


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else.*another folder"):
        demo.write_demo(tmp_path / "d", tmp_path / "t", seed=0, classes=["key"])
    assert [p.name for p in tmp_path.rglob("*")] == ["d", "mine.txt"]


@pytest.mark.parametrize("damage", ["seed", "picture", "marker"])
def test_another_or_a_damaged_demo_is_refused(written, tmp_path, damage):
    data, _, _ = written
    copy = tmp_path / "d"
    (copy / "test").mkdir(parents=True)
    for path in (data / "test").iterdir():
        (copy / "test" / path.name).symlink_to(path)
    marker = workspace.read_json(data / demo.MARKER)
    if damage == "seed":
        marker |= {"seed": 4, "pictures": len(list(copy.rglob("*.JPEG")))}
    workspace.write_text(copy / demo.MARKER, "{" if damage == "marker" else "")
    if damage != "marker":
        workspace.write_json(copy / demo.MARKER, marker)
    message = {"seed": "seed 4", "picture": r"with \d+ of \d+", "marker": "else"}
    with pytest.raises(FileExistsError, match=message[damage]):
        demo.write_demo(copy, tmp_path / "t", seed=3, classes=CLASSES)
    assert not (tmp_path / "t").exists()


def test_a_run_that_breaks_leaves_nothing_half_made(tmp_path, monkeypatch):
    done = []

    def break_later(ink, look, rng):
        done.append(look)
        if len(done) > 5:
            raise OSError(28, "No space left on device")
        return ink

    (tmp_path / "d").mkdir()  # an empty folder is free
    places = Path(tmp_path / "d"), Path(tmp_path / "t")
    with monkeypatch.context() as patch:
        patch.setattr(demo_drawing, "draw_sketch", break_later)
        with pytest.raises(OSError, match="No space left"):
            demo.write_demo(*places, seed=0, classes=["key"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "t"]
    assert not any(places[0].iterdir())
    killed, running = tmp_path / ".d-01234567.part", tmp_path / ".d-89abcdef.part"
    for left in (killed, running):
        left.mkdir()
    os.utime(killed, (0, 0))
    demo.write_demo(*places, seed=0, classes=["key"])
    assert (places[0] / "train.csv").exists()
    assert running.exists() and not killed.exists()


def test_a_missing_icon_package_names_the_extra(tmp_path, monkeypatch):
    find = demo_icons.importlib.util.find_spec
    monkeypatch.setattr(
        demo_icons.importlib.util,
        "find_spec",
        lambda name: None if name == "bsicons" else find(name),
    )
    with pytest.raises(
        ModuleNotFoundError, match=r'bsicons.*pip install -e ".\[demo\]'
    ):
        demo.write_demo(tmp_path / "d", tmp_path / "t", seed=0, classes=["key"])
    assert not list(tmp_path.iterdir())


def test_an_icon_gone_from_its_package_is_named():
    with pytest.raises(KeyError, match="no-such-icon.*bsicons.*requirements.txt"):
        demo_icons.read_ink("bootstrap:no-such-icon")


@pytest.mark.parametrize(
    ("classes", "truth", "message"),
    [
        (["dragon"], "t", "dragon.*airplane"),
        ([], "t", "none"),
        (["key"], "d/t", "apart"),
    ],
)
def test_impossible_requests_are_refused(tmp_path, classes, truth, message):
    with pytest.raises(ValueError, match=message):
        demo.write_demo(tmp_path / "d", tmp_path / truth, seed=0, classes=classes)


def test_there_are_24_classes_of_24_distinct_drawings():
    classes = demo_icons.read_classes()
    assert len(classes) >= 24
    assert min(map(len, classes.values())) >= 24
    drawings = [drawing for each in classes.values() for drawing in each]
    assert len(set(drawings)) == len(drawings)
    assert {drawing.split(":")[0] for drawing in drawings} == set(demo_icons.PACKS)


def test_versions_of_one_design_stay_on_one_side_unless_copied():
    pictures = demo.plan_pictures(0, sorted(demo_icons.read_classes()))
    sides: dict[tuple[str, str], set[str]] = {}
    for each in pictures:
        if each.kind == "drawing":
            family = demo_icons.family_of(each.drawing)
            sides.setdefault((each.class_name, family), set()).add(each.subset)
    assert all(len(subsets) == 1 for subsets in sides.values())
    assert 900 <= len(pictures) <= 1000
    assert {each.kind for each in pictures} >= set(demo_drawing.COPY_KINDS)


@pytest.mark.slow
def test_the_whole_demo_is_ready_in_30_seconds(written, tmp_path):
    start = time.perf_counter()
    demo.write_demo(tmp_path / "d", tmp_path / "t", seed=3)
    assert time.perf_counter() - start < 30
    train = pd.read_csv(tmp_path / "d" / "train.csv")
    assert train["class_name"].nunique() >= 24
    # processes and one thread draw alike
    small, large = contents(written[0]), contents(tmp_path / "d")
    assert len(set(small.values()) & set(large.values())) > 0.8 * len(small)
