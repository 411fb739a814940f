import re

import numpy as np
import pandas as pd
import pytest

from sketchlib import workspace
from sketchlib.analysis import scores
from sketchlib.data import audit, decisions, groups, manifest
from sketchlib.training import predictions
from sketchlib.workbook import (
    cli,
    freshness,
    jobs,
    parameters,
    review,
    review_widget,
    session,
)

FIRST = "train/circle/sketch_0.JPEG"
SECOND = "train/circle/sketch_1.JPEG"


def write_audit(world, folder):
    """What 01_eda writes of `world`, with one doubtful pair and one conflict."""
    table = manifest.read_manifest(world)
    findings = audit.measure(table, world)
    flip = ("train/stairs/sketch_0.JPEG", "train/stairs/sketch_1.JPEG")
    rows = [
        (FIRST, SECOND, "bytes", 1.0),
        (*flip, "hflip", 0.999),
        ("train/cross/sketch_4.JPEG", "train/cross/sketch_5.JPEG", "near", 0.972),
        ("train/square/sketch_4.JPEG", "train/stairs/sketch_5.JPEG", "near", 0.98),
        ("test/1.JPEG", "train/cross/sketch_7.JPEG", "near", 0.975),
        ("test/2.JPEG", "test/3.JPEG", "near", 0.971),
    ]
    pairs = pd.DataFrame(rows, columns=["image_id_a", "image_id_b", "kind", "score"])
    copies = groups.make_groups(pairs, findings, manifest=table)
    folder.mkdir(parents=True)
    for name, one in (("pairs", pairs), ("groups", copies), ("findings", findings)):
        one.to_csv(folder / f"{name}.csv", index=False)
    asked = {"likeness": 0.97, "data_dir": str(world), "columns": []}
    workspace.write_json(folder / "run.json", {"parameters": asked, "state": "done"})
    return table


@pytest.fixture
def desk(own_world, tmp_path):
    table = write_audit(own_world, tmp_path / "runs" / "audit")
    return review.open_desk(tmp_path / "runs" / "audit", own_world, table, by="me")


def reopen(desk, tmp_path):
    return review.open_desk(tmp_path / "runs" / "audit", desk.data_dir, desk.manifest)


def test_questions_come_in_doubt_order(desk):
    kinds = [item.kind for item in desk.items]
    assert kinds[:4] == ["pair", "pair", "pair", "conflict"]
    assert set(kinds[4:]) == {"flag"}
    scores = [item.score for item in desk.items[:3]]
    assert scores == sorted(scores) == [0.972, 0.975, 0.999]
    assert not any("test/2.JPEG" in item.image_ids for item in desk.items)  # moot
    assert not any(FIRST in item.image_ids for item in desk.items[:4])  # same bytes
    assert ("train/cross/sketch_2.JPEG",) in [item.image_ids for item in desk.items]


def test_suspects_come_before_flags_with_a_suggestion(own_world, tmp_path):
    folder = tmp_path / "runs" / "audit"
    table = write_audit(own_world, folder)
    suspects = pd.DataFrame(
        {"image_id": [FIRST, SECOND], "suggestion": "square", "suspicion": [0.2, 0.9]}
    )
    suspects.to_csv(folder / "suspects.csv", index=False)
    items = review.open_desk(folder, own_world, table).items
    found = [item for item in items if item.kind == "suspect"]
    assert [item.image_ids[0] for item in found] == [SECOND, FIRST]
    assert found[0].suggestion == "square"
    assert items.index(found[1]) < [item.kind for item in items].index("flag")


def test_each_verdict_is_a_line_and_moves_to_the_next_question(desk, tmp_path):
    desk.decide("not_duplicate")
    desk.decide("keep")
    desk.decide("drop")
    desk.decide("relabel", "train/stairs/sketch_5.JPEG", "square")
    table = pd.read_csv(desk.path, keep_default_na=False)
    assert list(table.columns) == list(decisions.COLUMNS)
    assert table["action"].tolist() == ["not_duplicate", "keep", "drop", "relabel"]
    assert table["old"].tolist() == ["cross", "", "stairs", "stairs"]
    assert set(table["by"]) == {"me"}
    assert desk.current.kind == "flag"
    assert desk.progress.startswith("4 of ")


def test_a_new_desk_goes_on_where_a_killed_one_was(desk, tmp_path):
    for _ in range(3):
        desk.decide("keep")
    again = reopen(desk, tmp_path)
    assert again.current == desk.current
    assert again.progress == desk.progress


def test_undo_brings_the_question_back(desk):
    asked = desk.current
    desk.decide("not_duplicate")
    assert desk.current != asked
    desk.undo()
    assert desk.current == asked
    assert desk.is_open(asked)
    with pytest.raises(ValueError, match="no verdict to undo"):
        desk.undo()
    assert decisions.read_decisions(desk.path).standing == []


def test_a_skipped_question_comes_again_after_the_others(desk):
    asked = desk.current
    desk.skip()
    for _ in range(len(desk.open_items) - 1):
        desk.decide("keep")
    assert desk.current == asked
    desk.decide("keep")
    assert desk.current is None
    with pytest.raises(ValueError, match="every question is answered"):
        desk.decide("keep")


@pytest.mark.parametrize(
    ("image_id", "action", "new", "words"),
    [
        ("test/1.JPEG", "drop", "", "test picture"),
        ("test/1.JPEG", "relabel", "cross", "test picture"),
        (FIRST, "relabel", "crcle", "did you mean `circle`"),
        (FIRST, "not_duplicate", "", "other picture"),
        (FIRST + "x", "drop", "", "did you mean"),
        (FIRST, "forget", "", "action must be one of"),
    ],
)
def test_a_verdict_without_effect_is_refused(desk, image_id, action, new, words):
    with pytest.raises(ValueError, match=words):
        desk.record(image_id, action, new)
    assert not desk.path.exists()


def test_an_applied_relabel_does_not_answer_the_next_conflict(desk, tmp_path):
    desk.record("train/stairs/sketch_5.JPEG", "relabel", "cross")
    assert desk.items[3].kind == "conflict"
    assert not desk.is_open(desk.items[3])
    laid = decisions.overlay(desk.manifest, desk.verdicts)
    later = review.open_desk(tmp_path / "runs" / "audit", desk.data_dir, laid)
    assert [item.kind for item in later.open_items].count("conflict") == 1


def test_nothing_in_the_data_folder_changes(desk):
    before = {path: path.stat().st_mtime_ns for path in desk.data_dir.rglob("*")}
    desk.decide("drop")
    desk.undo()
    assert before == {p: p.stat().st_mtime_ns for p in desk.data_dir.rglob("*")}
    assert desk.data_dir not in desk.path.parents


# --- the gallery and the widget -----------------------------------------------------


def test_f57_headless_the_same_questions_stand_as_plain_html(desk, monkeypatch):
    monkeypatch.setenv("SKETCHBOOK_HEADLESS", "1")
    page = review.show(desk, shown=3).data
    assert "JupyterLab" in page
    assert "sketch review" in page
    assert page.count("<figure") == 3
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img") == 6
    for item in desk.items[:3]:
        assert all(one in page for one in item.image_ids)
    assert "<script" not in page
    assert f"{len(desk.items) - 3} more" in page


def test_f8_names_in_the_gallery_are_escaped(desk):
    desk.names[desk.items[0].image_ids[0]] = "<script>alert(1)</script>"
    page = review.make_gallery(desk, shown=1)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_widget_says_what_the_desk_does(desk, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    monkeypatch.delenv("SKETCHBOOK_HEADLESS", raising=False)
    panel = review.show(desk, shown=3)
    assert isinstance(panel, review_widget.ReviewWidget)
    asked = panel.state["pictures"]
    assert [one["id"] for one in asked] == list(desk.items[0].image_ids)
    panel._take(panel, {"action": "not_duplicate"}, None)
    assert desk.verdicts.pairs
    assert "not_duplicate" in panel.state["told"]
    panel._take(panel, {"action": "drop", "id": "test/1.JPEG"}, None)
    assert "test picture" in panel.state["told"]
    panel._take(panel, {"action": "undo"}, None)
    assert [one["id"] for one in panel.state["pictures"]] == [
        one["id"] for one in asked
    ]
    for _ in desk.items:
        panel._take(panel, {"action": "keep"}, None)
    assert panel.state["pictures"] == []


def test_the_widget_suggests_the_other_pictures_class(desk):
    desk.place = 3
    panel = review_widget.ReviewWidget(desk)
    assert panel.state["suggestion"] == "square"


def test_pictures_are_sent_small(rng):
    picture = rng.integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    assert len(review.as_data_uri(picture)) < 80_000
    assert review.as_data_uri(picture[:1]).startswith("data:image/jpeg;base64,")


# --- the terminal -------------------------------------------------------------------


def test_the_terminal_lists_decides_and_undoes(desk, tmp_path, capsys):
    runs = ["--runs", str(tmp_path / "runs")]
    assert cli.main(["review", *runs, "--shown", "2"]) == 0
    told = capsys.readouterr().out
    assert "pair · near · 0.972" in told
    assert re.search(r"0 of \d+ answered", told)
    assert str(desk.path) in told
    assert cli.main(["review", *runs, "--decide", FIRST, "drop"]) == 0
    assert decisions.read_decisions(desk.path).dropped == {FIRST}
    wanted = ["--decide", SECOND, "relabel", "--new", "cross"]
    assert cli.main(["review", *runs, *wanted]) == 0
    assert cli.main(["review", *runs, "--decide", FIRST, "undo"]) == 0
    verdicts = decisions.read_decisions(desk.path)
    assert verdicts.labels == {SECOND: "cross"}
    assert not verdicts.dropped


def test_the_terminal_says_what_is_wrong(desk, tmp_path, capsys):
    runs = ["--runs", str(tmp_path / "runs")]
    assert cli.main(["review", "audits", *runs]) == 2
    assert "run 01_eda first" in capsys.readouterr().err
    assert cli.main(["review", *runs, "--decide", "train/none", "drop"]) == 2
    assert "no picture is called" in capsys.readouterr().err


# --- what a verdict changes ---------------------------------------------------------


def start(notebook, world, runs):
    schema = parameters.read_parameters(parameters.find_notebook(notebook))
    asked = {name: entry.default for name, entry in schema.items()}
    return session.start(
        notebook, asked | {"data_dir": str(world), "runs_dir": str(runs)}
    )


def test_every_notebook_reads_the_verdicts_and_keeps_a_copy(desk, tmp_path, capsys):
    desk.record(FIRST, "drop")
    desk.record("train/cross/sketch_4.JPEG", "relabel", "stairs")
    for notebook in ("01_eda", "03_train", "04_evaluate"):
        here = start(notebook, desk.data_dir, tmp_path / "runs")
        table = session.read_manifest(here).set_index("image_id")
        assert table.at[FIRST, "subset"] == "dropped"
        assert table.at["train/cross/sketch_4.JPEG", "class_name"] == "stairs"
        copy = here.run.dir / "decisions.csv"
        assert copy.read_bytes() == desk.path.read_bytes()
        assert "1 pictures dropped, 1 relabelled" in capsys.readouterr().out


def test_scores_leave_out_what_was_dropped_since_and_go_by_the_new_label(
    desk, tmp_path
):
    train = manifest.train_rows(desk.manifest)
    logits = np.eye(4, dtype=np.float32)[train["label"]] * 9
    ids, fold = train["image_id"].to_numpy(str), np.zeros(len(train), np.int64)
    classes = np.array(manifest.class_names(desk.manifest))
    oof = predictions.Predictions(ids, classes, logits, fold)
    predictions.write_predictions(tmp_path / "runs" / "one" / "oof.npz", oof)
    desk.record(FIRST, "drop")
    desk.record("train/cross/sketch_4.JPEG", "relabel", "stairs")
    here = start("04_evaluate", desk.data_dir, tmp_path / "runs")
    table = session.read_manifest(here)
    summary = scores.summarise(oof, table)
    assert summary["images"] == len(train) - 1
    assert summary["accuracy"] == pytest.approx(1 - 1 / (len(train) - 1))
    read = session.read_predictions(here, ["one"], "oof.npz")["one"]
    assert FIRST not in set(read.image_ids)
    assert len(read.image_ids) == len(train) - 1


def test_a_plan_sees_that_a_verdict_was_given(desk, tmp_path):
    notebook = parameters.find_notebook("01_eda")
    job = jobs.make_job(notebook, {"data_dir": str(desk.data_dir)})
    before = freshness.hash_data(job)
    desk.decide("keep")
    assert freshness.hash_data(job) != before
