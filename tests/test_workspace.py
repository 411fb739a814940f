import errno
import json
import os

import pytest

from sketchlib import workspace


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "a.txt"
    workspace.write_text(target, "before")

    def fail():
        with workspace.atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_f32_a_full_disk_keeps_the_file_and_says_how_much_is_free(
    tmp_path, monkeypatch
):
    target = tmp_path / "a.txt"
    workspace.write_text(target, "before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no room to write `a.txt`: [\d,]+ bytes"):
        workspace.write_text(target, "after")
    assert target.read_text() == "before"


def test_a_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    workspace.append_jsonl(path, {"epoch": 1})
    with path.open("a") as out:
        out.write('{"epoch": 2, "lo')
    assert workspace.read_jsonl(path) == [{"epoch": 1}]


def test_a_run_tells_what_was_asked_and_how_it_ended(tmp_path):
    run = workspace.open_run(tmp_path, "one", {"epochs": 3}, hypothesis="more is more")
    assert workspace.read_json(run.dir / "run.json")["state"] == "running"
    run.log(epoch=1, loss=0.5)
    run.finish(scores={"accuracy": 0.5})
    record = json.loads((run.dir / "run.json").read_text())
    assert record["state"] == "done"
    assert record["parameters"] == {"epochs": 3}
    assert record["versions"]["python"]
    assert record["seconds"] >= 0
    assert workspace.read_jsonl(run.dir / "metrics.jsonl") == [
        {"epoch": 1, "loss": 0.5}
    ]


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "x{y}", "a\0b"])
def test_a_run_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="`run_name` must be a plain folder name"):
        workspace.open_run(tmp_path, name, {})


def test_a_relative_path_means_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = workspace.repo_root()
    assert workspace.resolve_path("notebooks") == root / "notebooks"
    assert workspace.resolve_path("not-there-yet") == root / "not-there-yet"
    (tmp_path / "mine").mkdir()
    assert workspace.resolve_path("mine") == tmp_path / "mine"


def test_what_json_has_not_becomes_null(tmp_path):
    path = workspace.write_json(tmp_path / "a.json", {"sd": float("nan"), "n": [1]})
    assert workspace.read_json(path) == {"sd": None, "n": [1]}


def test_equal_values_have_equal_hashes():
    one = workspace.hash_value({"a": 1, "b": [1, 2]})
    assert one == workspace.hash_value({"b": [1, 2], "a": 1})
    assert one != workspace.hash_value({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize(("told", "limit"), [("", 0), ("4", 4), ("8,2", 8), ("all", 0)])
def test_the_limit_of_threads_is_read_as_openmp_does(monkeypatch, told, limit):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert workspace.thread_limit() == limit
    assert workspace.provenance()["threads"] == limit
