"""Labels made of columns, what classes are made of, and coarser classes."""

import pandas as pd
import pytest

from sketchlib.data import attributes, manifest, splits
from sketchlib.workbook import session as sessions

ROWS = [  # mask, gender, age, person
    ("on", "f", "9", "ann"),
    ("off", "f", "9", "ann"),
    ("on", "m", "10", "bob"),
    ("off", "m", "10", "bob"),
    ("on", "f", "10", "eve"),
    ("off", "f", "10", "eve"),
]
MADE = manifest.make_columns(["image_path", "mask+gender+age"])


def write_people(folder, rows=ROWS, **columns):
    """A train.csv of people; `columns` are further ones, a list of values each."""
    table = pd.DataFrame(rows, columns=["mask", "gender", "age", "person"])
    table.insert(0, "image_path", [f"{number}.png" for number in range(len(rows))])
    table = table.assign(**columns)
    table.to_csv(folder / "train.csv", index=False)
    return folder


def test_a_label_of_columns_is_a_class_for_each_row_of_values(tmp_path):
    table = manifest.read_manifest(write_people(tmp_path), MADE)
    names = manifest.class_names(table)
    assert names == ["off+f+9", "off+f+10", "off+m+10", "on+f+9", "on+f+10", "on+m+10"]
    rows = ["+".join(row[:3]) for row in ROWS]
    assert table["class_name"].tolist() == rows
    assert [names[label] for label in table["label"]] == rows
    assert manifest.given_labels(tmp_path, MADE) == list(range(6))


def test_a_plus_makes_the_values_of_one_column_the_classes(tmp_path):
    columns = manifest.make_columns(["image_path", "+age"])
    table = manifest.read_manifest(write_people(tmp_path), columns)
    assert manifest.class_names(table) == ["9", "10"]
    assert columns.made_of == ("age",)
    assert columns.answer == "target"
    plain = manifest.make_columns(["image_path", "mask"])
    with pytest.raises(ValueError, match=r"write `\+mask` in `columns`"):
        manifest.read_manifest(tmp_path, plain)


@pytest.mark.parametrize("label", ["+", "a+", "a+a", "a++b"])
def test_a_malformed_label_is_refused(label):
    with pytest.raises(ValueError, match=r"as in `mask\+gender\+age` or `\+mask`"):
        manifest.make_columns(["image_path", label])


def test_a_missing_column_of_a_label_is_named_with_the_nearest(tmp_path):
    write_people(tmp_path)
    columns = manifest.make_columns(["image_path", "mask+gendre+age"])
    with pytest.raises(ValueError, match="`gendre`.*is `gender` it"):
        manifest.read_manifest(tmp_path, columns)


def test_an_empty_value_is_named_by_its_row(tmp_path):
    write_people(tmp_path, [*ROWS, ("on", "", "9", "ann")])
    with pytest.raises(ValueError, match="`gender` should have a value.* row 8"):
        manifest.read_manifest(tmp_path, MADE)


def test_values_that_make_one_name_twice_are_refused(tmp_path):
    rows = [("a+b", "c", "9", "x"), ("a", "b+c", "9", "y")]
    with pytest.raises(ValueError, match=r"'a\+b\+c\+9' comes from two rows"):
        manifest.read_manifest(write_people(tmp_path, rows), MADE)


def test_the_same_person_is_never_on_both_sides(tmp_path):
    many = [(*row[:3], f"{row[3]}{n}") for n in range(8) for row in ROWS]
    table = manifest.read_manifest(write_people(tmp_path, many), MADE)
    persons = manifest.read_groups(tmp_path, "person", MADE)
    folds = splits.make_folds(table, persons, 3, seed=0)
    splits.check_folds(folds, table)
    of_person = persons.merge(folds[["image_id", "fold"]], on="image_id")
    assert (of_person.groupby("group")["fold"].nunique() == 1).all()
    assert of_person["fold"].nunique() == 3
    plain = splits.make_folds(table, None, 3, seed=0)  # what it would be otherwise
    leaked = persons.merge(plain[["image_id", "fold"]], on="image_id")
    assert (leaked.groupby("group")["fold"].nunique() > 1).any()


class TestParts:
    def test_they_say_the_value_of_each_class(self, tmp_path):
        parts = attributes.read_parts(write_people(tmp_path), MADE, [])
        assert parts.names == ("mask", "gender", "age")
        assert parts.of(0) == ["off"] * 3 + ["on"] * 3
        assert parts.of(2) == ["9", "10", "10"] * 2

    def test_columns_beside_a_numbered_label_say_it_too(self, tmp_path):
        write_people(tmp_path, target=[7, 3, 9, 5, 8, 4])
        columns = manifest.make_columns(["image_path", "target"])
        parts = attributes.read_parts(tmp_path, columns, ["mask", "gender"])
        assert parts.of(0) == ["off", "off", "off", "on", "on", "on"]
        assert parts.of(1) == ["f", "f", "m", "f", "f", "m"]  # targets 3 4 5 7 8 9
        assert attributes.read_parts(tmp_path, columns, []) is None

    def test_rows_of_values_nobody_drew_are_named(self, tmp_path):
        parts = attributes.read_parts(write_people(tmp_path), MADE, [])
        assert attributes.list_unseen(parts) == ["off+m+9", "on+m+9"]
        told = attributes.describe(parts)
        assert told[0] == "6 classes of mask (2) × gender (2) × age (2)"
        assert "2 rows of values have no training picture" in told[1]
        assert "off+m+9" in told[1]

    def test_a_missing_column_is_named_with_the_nearest(self, tmp_path):
        write_people(tmp_path)
        with pytest.raises(ValueError, match="'maks' came; did you mean 'mask'"):
            attributes.read_parts(tmp_path, MADE, ["maks"])

    def test_a_class_with_two_values_is_refused(self, tmp_path):
        write_people(tmp_path, target=[0, 0, 1, 1, 2, 2])
        columns = manifest.make_columns(["image_path", "target"])
        with pytest.raises(ValueError, match="class '0' has 2 in .*: off, on"):
            attributes.read_parts(tmp_path, columns, ["mask"])

    def test_classes_that_no_attribute_tells_apart_are_named(self, tmp_path):
        parts = attributes.read_parts(write_people(tmp_path), MADE, ["mask", "age"])
        names = ["a", "b", "c", "d", "e", "f"]
        with pytest.raises(ValueError, match="'b' and 'c' have the same mask, age"):
            attributes.check_distinct(parts, names)


class TestGrouping:
    CLASSES = ("dog", "cat", "car")

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("m.csv", "class_name,superclass\ncat,animal\ndog,animal\ncar,thing\n"),
            ("m.yaml", "animal: [dog, cat]\nthing: [car]\n"),
        ],
    )
    def test_a_file_gives_every_class_its_superclass(self, tmp_path, name, text):
        (tmp_path / name).write_text(text)
        found = attributes.read_mapping(tmp_path / name, self.CLASSES)
        assert found.to_dict() == {"dog": "animal", "cat": "animal", "car": "thing"}

    @pytest.mark.parametrize(
        ("name", "text", "told"),
        [
            ("m.yaml", "animal: [dog, kat]\nthing: [car]\n", "first 'cat' .is 'kat'"),
            ("m.yaml", "animal: [dog, cat]\nthing: [car, dog]\n", "'dog' has 'animal'"),
            ("m.yaml", "animal: dog\n", "should be lines"),
            ("m.yaml", "a: [b", "cannot be read"),
            ("m.csv", "class_name,group\ndog,animal\n", "columns class_name and super"),
        ],
    )
    def test_a_mapping_that_cannot_be_used_is_refused(self, tmp_path, name, text, told):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=told):
            attributes.read_mapping(tmp_path / name, self.CLASSES)

    def test_a_missing_file_is_named(self, tmp_path):
        for name in ("gone.csv", "gone.yaml"):
            with pytest.raises(FileNotFoundError, match=name):
                attributes.read_mapping(tmp_path / name, self.CLASSES)

    def test_a_column_gives_it_too(self, tmp_path):
        write_people(tmp_path)
        found = attributes.read_grouping("mask", tmp_path, MADE, None)
        assert found.tolist() == ["off"] * 3 + ["on"] * 3
        with pytest.raises(ValueError, match="`superclasses` .* did you mean 'mask'"):
            attributes.read_grouping("msk", tmp_path, MADE, None)


def test_the_group_column_of_01_keeps_persons_whole_for_labels_of_columns(tmp_path):
    """The way 01_eda makes folds: copies and persons joined."""
    many = [(*row[:3], f"{row[3]}{n}") for n in range(6) for row in ROWS]
    data = write_people(tmp_path, many)
    table = manifest.read_manifest(data, MADE)
    ids = table["image_id"]
    copies = pd.DataFrame({"image_id": [ids[0], ids[2]], "group": ["pair", "pair"]})
    asked = {"columns": ["image_path", "mask+gender+age"], "group_column": "person"}
    asked |= {"hold_out": 0.0, "folds": 3, "seed": 0}

    class Run:
        record = {"parameters": asked}

    folds = sessions.make_folds(sessions.Session(Run, data, tmp_path), table, copies)
    fold = folds.set_index("image_id")["fold"]
    persons = manifest.read_groups(data, "person", MADE).set_index("image_id")["group"]
    assert fold[ids[0]] == fold[ids[2]]
    assert (fold.groupby(persons.reindex(fold.index)).nunique() == 1).all()
