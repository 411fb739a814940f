"""FAULTS rows 24 and 57: the review's file, and its widget without a kernel."""

import os
import signal
import subprocess
import sys

import pytest

from sketchlib.data import decisions, manifest

HEAD = "id,action,old,new,by,when\n"
LINE = "train/a,drop,cup,,me,2026-01-02T03:04:05+00:00\n"


def read(tmp_path, text):
    path = tmp_path / "decisions.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path, decisions.read_decisions(path)


@pytest.mark.parametrize("cut", range(1, len(LINE)))
def test_f24_a_line_cut_anywhere_costs_that_line_only(tmp_path, cut):
    path, verdicts = read(tmp_path, HEAD + LINE + LINE.replace("/a", "/b")[:cut])
    assert "train/a" in verdicts.dropped
    whole = cut == len(LINE) - 1  # only the line's end is missing
    told = "cut while being written" in "".join(verdicts.notices)
    assert told or whole or "train/b" in verdicts.dropped
    decisions.append(path, decisions.Decision("train/c", "drop"))
    assert {"train/a", "train/c"} <= decisions.read_decisions(path).dropped


def test_f24_a_file_edited_by_hand_is_read_and_what_is_odd_is_reported(tmp_path):
    _, verdicts = read(
        tmp_path,
        "\ufeffwhen,new, id ,action\r\n"
        ",, train/a ,drop\r\n\r\n"
        ",cup,train/b,relabel\r\n"
        ",,train/c,remove\r\n"
        ",,train/d,relabel\r\n"
        ",,,drop\r\n"
        ",,train/e,undo\r\n",
    )
    assert verdicts.dropped == {"train/a"}
    assert verdicts.labels == {"train/b": "cup"}
    told = "\n".join(verdicts.notices)
    for words in ("line 5", "'remove'", "line 6", "needs a value", "line 7", "line 8"):
        assert words in told


def test_f24_a_lost_header_and_bytes_that_are_no_text_are_survived(tmp_path):
    _, verdicts = read(tmp_path, LINE)
    assert verdicts.dropped == {"train/a"}
    assert "no header" in verdicts.notices[0]
    _, verdicts = read(tmp_path, HEAD.encode() + b"\xff\xfe\x00,\x80\n" + LINE.encode())
    assert verdicts.dropped == {"train/a"}
    assert "line 2" in verdicts.notices[0]
    assert read(tmp_path, "")[1].standing == []


def test_f24_unknown_ids_and_classes_are_reported_and_change_nothing(world, tmp_path):
    _, verdicts = read(
        tmp_path,
        HEAD + LINE + "train/cross/sketch_4.JPEG,relabel,,stars,,\n",
    )
    table = manifest.read_manifest(world)
    laid = decisions.overlay(table, verdicts)
    assert laid.equals(table)
    told = "\n".join(laid.attrs["notices"])
    assert "not in the data: train/a" in told
    assert "is 'stairs' meant?" in told


def test_f24_a_kill_loses_no_finished_verdict(tmp_path):
    """A process that only appends is killed; what it had announced is in the file."""
    path = tmp_path / "decisions.csv"
    code = (
        "from pathlib import Path; from sketchlib.data import decisions as d\n"
        "import itertools\n"
        "for n in itertools.count():\n"
        f"    d.append(Path({str(path)!r}), d.Decision(f'train/{{n}}', 'drop'))\n"
        "    print(n, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    said = [child.stdout.readline() for _ in range(25)]
    os.kill(child.pid, signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    last = int(said[-1])
    assert {f"train/{n}" for n in range(last + 1)} <= decisions.read_decisions(
        path
    ).dropped


def test_f24_a_folder_that_may_not_be_written_names_the_way_out(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(decisions.os, "open", refuse)
    with pytest.raises(ValueError, match="SKETCHBOOK_DECISIONS"):
        decisions.append(tmp_path / "decisions.csv", decisions.Decision("x", "drop"))
