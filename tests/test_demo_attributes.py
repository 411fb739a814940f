"""The demo of composite labels: its tables, its authors, what its pictures show."""

import cv2
import numpy as np
import pandas as pd
import pytest

from sketchlib.data import demo_attributes, manifest, splits
from sketchlib.workbook import cli

FEW = ("bell", "key")
MADE = manifest.make_columns(["image_path", "subject+ground+line"])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return demo_attributes.write_demo(
        tmp_path_factory.mktemp("demo") / "few", seed=0, subjects=FEW
    )


def test_the_numbered_label_is_that_of_its_columns(written):
    numbered = manifest.read_manifest(written)
    made = manifest.read_manifest(written, MADE)
    assert sorted(manifest.class_names(made)) == sorted(manifest.class_names(numbered))
    assert (numbered["class_name"] == made["class_name"]).all()
    assert len(manifest.class_names(numbered)) == 8
    manifest.check_sample(
        manifest.read_table(written / "sample_submission.csv"), numbered, written
    )


def test_a_picture_shows_what_its_row_says(written):
    table = pd.read_csv(written / "train.csv")
    shown = []
    for row in table.itertuples():
        grey = cv2.imread(str(written / "train" / row.image_path), 0)
        edge = np.median(np.r_[grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        ink = (np.abs(grey.astype(int) - edge) > 60).mean()
        shown.append((edge, ink))
    edge, ink = np.array(shown).T
    dark = (table["ground"] == "dark").to_numpy()
    assert edge[dark].max() < 128 < edge[~dark].min()
    bold = (table["line"] == "bold").to_numpy()
    for ground in (dark, ~dark):
        assert np.median(ink[bold & ground]) > 1.5 * np.median(ink[~bold & ground])


def test_authors_can_be_kept_whole_and_draw_in_every_style(written):
    table = manifest.read_manifest(written)
    authors = manifest.read_groups(written, "author")
    folds = splits.make_folds(table, authors, 3, seed=0)
    joined = authors.merge(folds[["image_id", "fold"]], on="image_id")
    assert (joined.groupby("group")["fold"].nunique() == 1).all()
    rows = pd.read_csv(written / "train.csv")
    assert (rows.groupby("author").size() % 3 == 0).all()
    counts = rows["ground"].value_counts()
    assert counts["light"] == 2 * counts["dark"]


def test_the_same_seed_gives_the_same_files_and_a_second_call_changes_nothing(
    written, tmp_path
):
    again = demo_attributes.write_demo(tmp_path / "again", seed=0, subjects=FEW)
    for path in sorted(written.rglob("*.*")):
        assert path.read_bytes() == (again / path.relative_to(written)).read_bytes()
    stamp = (again / "train.csv").stat().st_mtime_ns
    demo_attributes.write_demo(again, seed=0, subjects=FEW)
    assert (again / "train.csv").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="nothing was changed"):
        demo_attributes.write_demo(again, seed=1, subjects=FEW)


def test_the_command_writes_it_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo_attributes, "SUBJECTS", FEW)
    seen = {}

    def write(folder, *, seed):
        seen.update(folder=folder, seed=seed)
        return folder

    monkeypatch.setattr(demo_attributes, "write_demo", write)
    assert (
        cli.main(["demo", "--attributes", str(tmp_path / "here"), "--seed", "3"]) == 0
    )
    assert seen == {"folder": tmp_path / "here", "seed": 3}
    assert str(tmp_path / "here") in capsys.readouterr().out
