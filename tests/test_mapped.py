"""Rows that processes write past the mapping of a file."""

import os

import numpy as np
import pytest

from sketchlib.data import mapped

KIND = np.dtype([("number", "i8"), ("name", "U5"), ("map", "u1", (30, 30))])


def make_rows(count: int) -> np.ndarray:
    rows = np.zeros(count, KIND)
    rows["number"] = np.arange(count) + 7
    rows["name"] = [f"n{row}" for row in range(count)]
    rows["map"] = (np.arange(count) % 251)[:, None, None]
    return rows


@pytest.mark.parametrize("rows", [[3], [0, 1, 2], [5, 2, 3, 4, 9], list(range(600))])
def test_rows_arrive_in_the_mapping_and_in_the_file(tmp_path, rows):
    path = tmp_path / "rows.npy"
    array = mapped.shared_file(path, KIND, (600,))
    made = make_rows(600)
    mapped.Writer(array, path).put(rows, [made[row : row + 1] for row in rows])
    wanted = np.zeros(600, KIND)
    wanted[rows] = made[rows]
    assert (array == wanted).all()
    assert (np.load(path) == wanted).all()


def test_pictures_are_written_like_records(tmp_path):
    path = tmp_path / "pixels.npy"
    array = mapped.shared_file(path, np.dtype(np.uint8), (4, 6, 6, 3))
    picture = np.arange(108, dtype=np.uint8).reshape(6, 6, 3)
    mapped.Writer(array, path).put([2], [picture[:, ::-1]])  # not contiguous
    assert (array[2] == picture[:, ::-1]).all()
    assert array.sum() == picture.sum()


def test_without_a_file_rows_go_to_memory():
    array = mapped.shared_zeros(5, KIND)
    mapped.Writer(array).put([4, 0], [make_rows(5)[4:], make_rows(5)[:1]])
    assert array["number"].tolist() == [7, 0, 0, 0, 11]


def test_a_write_cut_short_is_finished(tmp_path, monkeypatch):
    """A signal may end a write in the middle of a row."""
    path = tmp_path / "rows.npy"
    array, made = mapped.shared_file(path, KIND, (3,)), make_rows(3)
    write = os.pwritev
    monkeypatch.setattr(
        os, "pwritev", lambda file, parts, at: write(file, [parts[0][:100]], at)
    )
    mapped.Writer(array, path).put([0, 1, 2], [made[row : row + 1] for row in range(3)])
    assert (array == made).all()


def test_where_the_system_cannot_rows_go_through_the_mapping(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "pwritev")
    path = tmp_path / "rows.npy"
    array = mapped.shared_file(path, KIND, (3,))
    mapped.Writer(array, path).put([1], [make_rows(3)[1:2]])
    assert np.load(path)["number"].tolist() == [0, 8, 0]
