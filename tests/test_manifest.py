import pandas as pd
import pytest

from sketchlib.data import manifest


def write_csv(folder, text, encoding="utf-8"):
    (folder / "train.csv").write_bytes(text.encode(encoding))


def test_ids_are_subset_and_path_and_test_keeps_its_order(world):
    table = manifest.read_manifest(world)
    train = pd.read_csv(world / "train.csv")
    assert list(manifest.train_rows(table)["image_id"]) == [
        f"train/{path}" for path in train["image_path"]
    ]
    assert list(manifest.test_rows(table)["image_id"]) == [
        f"test/{number}.JPEG" for number in range(8)
    ]
    assert manifest.class_names(table) == ["circle", "cross", "square", "stairs"]


def test_class_folders_without_a_csv_are_read(own_world):
    (own_world / "train.csv").unlink()
    (own_world / "train" / "circle" / "._sketch_0.JPEG").write_bytes(b"litter")
    table = manifest.read_manifest(own_world)
    assert len(manifest.train_rows(table)) == 48


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("class_name,image_path,target\n", "header only"),
        ("class_name,path,target\na,b.png,0\n", "is `path` it"),
        ("class_name,image_path,label\na,b.png,0\n", "`target`"),
        ("class_name,image_path,target\na,b.png,x\n", "whole numbers"),
        ("class_name,image_path,target\na,b.png,-1\n", "whole numbers"),
        ("class_name,image_path,target\na,b.png,0\nb,b.png,1\n", "one label"),
        ("class_name,image_path,target\na,b.png,0\nb,c.png,0\n", "one class_name"),
        ("class_name,image_path,target\na,../../etc/passwd,0\n", "stay in its folder"),
        ("class_name,image_path,target\na,/etc/passwd,0\n", "stay in its folder"),
        ("class_name,image_path,target\na,http://x/y.png,0\n", "stay in its folder"),
    ],
)
def test_f1_to_f7_a_wrong_table_gets_one_sentence(tmp_path, text, words):
    write_csv(tmp_path, text)
    with pytest.raises(ValueError, match=words):
        manifest.read_manifest(tmp_path)


def test_f1_a_missing_folder_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="sketch demo"):
        manifest.read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_f3_bom_and_cp949_are_read(tmp_path, encoding):
    write_csv(
        tmp_path,
        'class_name,image_path,target\r\n"고양이, 집",a/나.png,0\r\n\r\n',
        encoding,
    )
    table = manifest.read_manifest(tmp_path)
    assert table["class_name"].tolist() == ["고양이, 집"]
    assert bool(table.attrs["notices"]) == (encoding == "cp949") or len(
        table.attrs["notices"]
    )


def test_f5_gaps_are_renumbered_and_the_given_labels_kept(tmp_path):
    write_csv(tmp_path, "class_name,image_path,target\na,1.png,3\nb,2.png,7\n")
    table = manifest.read_manifest(tmp_path)
    assert table["label"].tolist() == [0, 1]
    assert manifest.given_labels(tmp_path) == [3, 7]
    assert any("renumbered" in notice for notice in table.attrs["notices"])


def test_f6_a_repeated_test_picture_is_refused(own_world):
    (own_world / "test.csv").write_text("image_path\n0.JPEG\n0.JPEG\n")
    with pytest.raises(ValueError, match="unique"):
        manifest.read_manifest(own_world)


def test_f7_backslashes_are_normalised(tmp_path):
    write_csv(tmp_path, "class_name,image_path,target\na,a\\1.png,0\nb,2.png,1\n")
    assert manifest.read_manifest(tmp_path)["path"].iloc[0] == "train/a/1.png"


def test_a_sample_of_other_pictures_is_refused_before_any_work(world, tmp_path):
    table = manifest.read_manifest(world)
    sample = manifest.read_table(world / "sample_submission.csv")
    manifest.check_sample(sample, table, tmp_path)
    with pytest.raises(ValueError, match="a row for each of 8"):
        manifest.check_sample(sample.head(7), table, tmp_path)
    other = sample.assign(image_path=[f"x{name}" for name in sample["image_path"]])
    with pytest.raises(ValueError, match="should name the pictures of test.csv"):
        manifest.check_sample(other, table, tmp_path)
