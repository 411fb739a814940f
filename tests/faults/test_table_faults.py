"""Faults 1-10: what tables may hold, and what is said about the rest."""

import csv
import html
import html.parser
import unicodedata

import cv2
import numpy as np
import pandas as pd
import pytest

from sketchlib.analysis import board, plots
from sketchlib.data import audit, cache, images, manifest, splits
from sketchlib.training.predictions import Predictions
from sketchlib.workbook import gallery, parameters, session

HEAD = "class_name,image_path,target\n"


def read(folder, text, encoding="utf-8"):
    (folder / "train.csv").write_bytes(text.encode(encoding))
    return manifest.read_manifest(folder)


def draw(path):
    picture = np.full((64, 64), 255, np.uint8)
    cv2.circle(picture, (32, 32), 20, 0, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())


REFUSED = [
    (1, "", "is empty"),
    (1, HEAD, "header only"),
    (2, "class_name,image_path,label\na,b.png,0\n", "`columns`"),
    (2, "name,picture,target\na,b.png,0\n", r"its columns are \['name', 'picture'"),
    (4, f"{HEAD}a,b.png,0\nb,b.png,1\n", r"one label.* \('b.png': a, b\)"),
    (5, f"{HEAD}a,b.png,-1\n", "whole numbers"),
    (5, f"{HEAD}a,b.png,1.5\n", "whole numbers"),
    (5, f"{HEAD}a,1.png,0\nb,2.png,0\nc,3.png,1\n", "each label .* one class_name"),
    (5, f"{HEAD}a,1.png,0\na,2.png,1\nc,3.png,2\n", "each class_name .* one label"),
    (7, f"{HEAD}a,../../etc/passwd,0\n", "stay in its folder"),
    (7, f"{HEAD}a,/etc/passwd,0\n", "stay in its folder"),
    (7, f"{HEAD}a,https://x.example/a.png,0\n", "stay in its folder"),
    (7, f"{HEAD}a,C:\\a.png,0\n", "stay in its folder"),
]


@pytest.mark.parametrize(
    ("row", "text", "words"), REFUSED, ids=[f"f{row}-{w}" for row, _, w in REFUSED]
)
def test_a_wrong_table_is_refused_in_one_sentence(tmp_path, row, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, text)
    assert str(tmp_path) in str(caught.value)


def test_f1_a_missing_table_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.csv"):
        manifest.read_manifest(tmp_path)


def test_f2_columns_of_other_names_are_mapped(tmp_path):
    (tmp_path / "train.csv").write_text("file,number\na.png,0\nb.png,1\n")
    columns = manifest.make_columns(["file", "number"])
    table = manifest.read_manifest(tmp_path, columns)
    assert table["label"].tolist() == [0, 1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_f3_bom_cp949_crlf_quotes_and_blank_lines_are_read(tmp_path, encoding):
    text = (HEAD + '"고양이, 집",가/나.png,0\n개,다.png,1\n\n\n').replace("\n", "\r\n")
    table = read(tmp_path, text, encoding)
    assert table["class_name"].tolist() == ["고양이, 집", "개"]
    assert table["path"].tolist() == ["train/가/나.png", "train/다.png"]
    said = any("cp949" in notice for notice in table.attrs["notices"])
    assert said == (encoding == "cp949")


def test_f4_rows_that_stand_twice_are_one_and_said(tmp_path):
    table = read(tmp_path, f"{HEAD}a,1.png,0\na,1.png,0\nb,2.png,1\n")
    assert len(table) == 2
    assert any("stand twice" in notice for notice in table.attrs["notices"])


def test_f5_single_pictures_and_gaps_end_in_notices_not_in_a_trace(tmp_path):
    rows = "".join(f"a,a{n}.png,0\nb,b{n}.png,4\n" for n in range(6))
    table = read(tmp_path, f"{HEAD}{rows}c,c.png,9\n")
    notices = " ".join(table.attrs["notices"])
    assert "single picture" in notices
    assert "renumbered" in notices
    folds = splits.make_folds(table, None, 3, 0)
    splits.check_folds(folds, table)
    assert len(folds.attrs["notices"]) == 1


def test_f6_test_rows_keep_ids_and_order_and_repeats_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text(f"{HEAD}a,1.png,0\nb,2.png,1\n")
    (tmp_path / "test.csv").write_text("image_path,target\n9.png,0\n3.png,1\n5.png,0\n")
    table = manifest.test_rows(manifest.read_manifest(tmp_path))
    assert table["image_id"].tolist() == ["test/9.png", "test/3.png", "test/5.png"]
    assert (table["label"] == -1).all()
    (tmp_path / "test.csv").write_text("image_path\n9.png\n9.png\n")
    with pytest.raises(ValueError, match="unique"):
        manifest.read_manifest(tmp_path)


def test_f6_a_submission_has_the_samples_ids_in_its_order(tmp_path):
    (tmp_path / "train.csv").write_text(f"{HEAD}a,1.png,3\nb,2.png,7\n")
    (tmp_path / "test.csv").write_text("image_path,target\n9.png,0\n3.png,1\n")
    sample = "ID,image_path,target\n0041,3.png,0\n0007,9.png,0\n"
    (tmp_path / "sample_submission.csv").write_text(sample)
    table = manifest.read_manifest(tmp_path)
    ids = np.array(["test/9.png", "test/3.png"])
    logits = np.array([[2.0, 0.0], [0.0, 2.0]], np.float32)
    test = Predictions(ids, np.array(["a", "b"]), logits, np.full(2, -1))
    rows = manifest.read_table(tmp_path / "sample_submission.csv")
    given = manifest.given_labels(tmp_path)
    made = board.make_submission(test, rows, table, given)
    assert made.astype(str).to_numpy().tolist() == [
        ["0041", "3.png", "7"],
        ["0007", "9.png", "3"],
    ]


def test_f7_a_link_out_and_a_nul_are_refused_and_backslashes_read(tmp_path):
    draw(tmp_path / "outside.jpg")
    data = tmp_path / "data"
    draw(data / "train" / "a" / "1.jpg")
    (data / "train" / "a" / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    table = read(data, f"{HEAD}a,a\\1.jpg,0\na,a\\out.jpg,0\n")
    found = audit.measure(table, data)
    assert found["readable"].tolist() == [True, False]
    assert "leads out of" in found["problem"][1]
    with pytest.raises(images.PictureError):
        images.read_bytes(images.picture_path(data, "train/a\x00.jpg"))


def test_f8_a_formula_in_a_class_name_stays_a_quoted_text(world, tmp_path):
    schema = parameters.read_parameters(parameters.find_notebook("01_eda"))
    values = {name: entry.default for name, entry in schema.items()}
    values |= {"data_dir": str(world), "runs_dir": str(tmp_path)}
    here = session.start("01_eda", values)
    table = pd.DataFrame({"class_name": ["=cmd()", '<script>"'], "images": [1, 2]})
    session.write_tables(here, {"facts": table})
    path = here.run.dir / "facts.csv"
    assert '"=cmd()",1' in path.read_text().splitlines()
    with path.open(newline="") as file:
        assert list(csv.reader(file))[2] == ['<script>"', "2"]


class Tags(html.parser.HTMLParser):
    """The elements of a page, as a browser would make them."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append(tag)
        self.found += [f"{tag} {name}" for name, _ in attributes]


def test_f8_names_with_tags_are_text_on_the_page_of_all_classes(world, tmp_path):
    """The report itself: tests/test_report.py; the review's page: test_review.py."""
    table = manifest.read_manifest(world)
    evil = '<script>x</script><img src=x onerror="y">'
    table["class_name"] = table["class_name"].replace("circle", evil)
    geometry = cache.Geometry(32, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path / "cache")
    text = gallery.write_class_page(tmp_path, table, pixels).read_text()
    tags = Tags(text).found
    assert "script" not in tags
    assert "img onerror" not in tags
    assert html.escape(evil) in text


NAMES = [
    "고양이.jpg",
    unicodedata.normalize("NFD", "고양이 둘.jpg"),
    "with two  spaces.jpg",
    "✏️🐈.jpg",
    "UPPER.JPEG",
    "x" * 251 + ".jpg",
]


@pytest.mark.parametrize("name", NAMES, ids=[f"f9-{n}" for n in range(len(NAMES))])
def test_f9_every_file_name_works(tmp_path, name):
    draw(tmp_path / "train" / name)
    composed = unicodedata.normalize("NFC", name)
    table = read(tmp_path, f"{HEAD}a,{composed},0\n")
    found = audit.measure(table, tmp_path, cache_dir=tmp_path / "cache")
    assert found["readable"].tolist() == [True]
    again = audit.measure(table, tmp_path, cache_dir=tmp_path / "cache")
    pd.testing.assert_frame_equal(found, again)


@pytest.mark.parametrize(
    "rows", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)]
)
def test_f10_many_rows_and_ten_thousand_classes(tmp_path, rows):
    number = np.arange(rows)
    table = pd.DataFrame({"target": number % 10_000})
    table["class_name"] = "class" + table["target"].astype(str)
    table["image_path"] = number.astype(str)
    table["image_path"] += ".jpg"
    table.to_csv(tmp_path / "train.csv", index=False)
    read_back = manifest.read_manifest(tmp_path)
    assert len(read_back) == rows
    assert len(manifest.class_names(read_back)) == 10_000
    axes = plots.plot_class_counts(read_back)
    assert len(axes.patches) + len(axes.lines) < 2_000
    assert f"10000 classes, {rows:,} images" in axes.get_title()
