import base64
import hashlib
import html
import html.parser
import json
import os
import re

import pytest
from toys import FINISH, KERNEL, PARAMETERS, SETUP, make_cell

from sketchlib import workspace
from sketchlib.workbook import report

EVIL = "<script>alert('x')</script>고양이"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YA"
    "AAAASUVORK5CYII="
)
REMOTE = re.compile(r"(?:https?:)?//[a-z]")


class Page(html.parser.HTMLParser):
    """Tags, their attributes, and the text, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.text.append(data)

    def fetched(self):
        """Addresses that a browser would ask for without a click."""
        names = {"src", "srcset", "href", "poster", "data", "action"}
        return [
            value
            for tag, name, value in self.attributes
            if name in names and tag not in ("a",) and not value.startswith("data:")
        ]


def show(**data):
    mime = {key.replace("_", "/"): value for key, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": mime}


def make_output_cell(name, *outputs):
    cell = make_cell(name, f"show_{name}()")
    cell["outputs"] = list(outputs)
    return cell


OUTPUTS = [
    make_output_cell(
        "tables",
        show(text_html=f"<table><td>ok</td></table>{EVIL}<img src=x onerror=alert(1)>"),
        show(text_html="<img src='https://evil.example/x.png'><iframe src='//e.x'>"),
        show(text_html="<a href=\"javascript:alert(1)\">a</a><a href='x.csv'>b</a>"),
        show(text_html="<style>@import 'https://evil.example/x.css'</style>kept"),
        show(text_html='<p style="background:url(https://evil.example)">para</p>'),
        show(text_markdown=f"**{EVIL}** was best"),
    ),
    make_output_cell(
        "figures",
        {
            "output_type": "display_data",
            "metadata": {"image/png": {"width": 320}},
            "data": {"image/png": PNG, "text/plain": "<Figure>"},
        },
        show(**{"image_svg+xml": "<svg><script>alert(1)</script></svg>"}),
    ),
    make_output_cell(
        "widget",
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {
                "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
                "application/javascript": "alert(1)",
                "text/plain": "Grid of 12 drawings",
            },
        },
    ),
    make_output_cell(
        "prints",
        {"output_type": "stream", "name": "stdout", "text": f"\x1b[31m{EVIL}\x1b[0m"},
        {
            "output_type": "error",
            "ename": "ValueError",
            "evalue": EVIL,
            "traceback": [f"ValueError: {EVIL}"],
        },
    ),
]


@pytest.fixture
def runs(tmp_path):
    """A folder of runs with one executed notebook, full of what data may hold."""
    folder = tmp_path / "runs" / "lite0 <b>"
    headings = "## One\n\ntext\n\n## Two & three\n\n### deeper\n\n## Four"
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": KERNEL},
        "cells": [
            make_cell(
                "title", f"# 03 · Train {EVIL}\n\n> **Does it?**", kind="markdown"
            ),
            make_cell("parameters", PARAMETERS, ["parameters"]),
            make_cell("injected", "epochs = 77077", ["injected-parameters"]),
            make_cell("setup", SETUP),
            make_cell("words", headings, kind="markdown"),
            *OUTPUTS,
            make_cell("finish", FINISH),
        ],
    }
    folder.mkdir(parents=True)
    (folder / "03_train.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    write_record(folder, hypothesis=EVIL, parameters={"epochs": 9, "recipe": EVIL})
    return tmp_path / "runs"


def write_record(folder, **facts):
    record = {"name": folder.name, "state": "done", "seconds": 72.0, "commit": "abc+"}
    record |= {"started": "2026-01-02T03:04:05+0000", "notebook": "03_train"}
    record |= {"versions": {"torch": "2.14.1"}, "peak_memory_mb": 812}
    record["scores"] = {"oof_accuracy": 0.91, "oof_low": 0.89, "oof_high": 0.93}
    workspace.write_json(folder / "run.json", record | facts)


@pytest.fixture
def page(runs):
    path = report.write_report(runs / "lite0 <b>")
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def text(runs):
    return report.write_report(runs / "lite0 <b>").read_text(encoding="utf-8")


def test_f56_a_report_asks_for_nothing_and_runs_nothing(page):
    assert "script" not in page.tags
    assert not {"iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert [address for address in page.fetched() if REMOTE.search(address)] == []
    assert [n for _, n, _ in page.attributes if n.startswith("on")] == []
    policy = next(v for _, n, v in page.attributes if n == "content" and "src" in v)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_links_that_would_run_are_disarmed_and_others_kept(page):
    links = [
        value for tag, name, value in page.attributes if (tag, name) == ("a", "href")
    ]
    assert "x.csv" in links
    assert not any(link.startswith("javascript") for link in links)


def test_styles_that_would_fetch_are_dropped_and_their_text_kept(text):
    assert "evil.example" not in text
    assert "para</p>" in text
    assert "kept" in text


def test_names_from_data_are_shown_as_text(page):
    shown = "".join(page.text)
    assert f"ValueError: {EVIL}" in shown
    assert shown.count("alert('x')") >= 4  # stream, error, hypothesis, parameter
    assert "b" not in page.tags


def test_parameters_and_provenance_stand_on_top(text):
    top = text.split("<main>")[0]
    for part in (
        "0.910",
        "0.890 – 0.930",
        "1:12 min",
        "abc+",
        "torch 2.14.1",
        "812 MiB",
    ):
        assert part in top
    assert "passes; ≥ 1" in top
    changed = top.split('<dl class="changed">')[1].split("</dl>")[0]
    assert "epochs" in changed


def test_the_injected_cell_is_hidden_and_code_is_folded_without_script(page, text):
    assert "77077" not in text
    assert "open_run" in text
    assert page.tags.count("details") >= 5
    assert "show_tables" in re.sub("<[^>]+>", "", text)


def test_headings_are_linked_and_listed(page, text):
    names = [v for t, n, v in page.attributes if t == "h2" and n == "id"]
    assert len(names) == 3
    contents = text.split('<ol class="contents">')[1].split("</ol>")[0]
    assert contents.count("<a href=") == 3
    assert "Two &amp; three" in contents
    for name in names:
        assert f'href="#{html.escape(name)}"' in contents


def test_figures_are_embedded_sharp_and_described(page):
    images = [v for t, n, v in page.attributes if t == "img" and n == "src"]
    embedded = [source[:15] for source in images if source.startswith("data:")]
    assert embedded == ["data:image/png;", "data:image/svg+"]
    assert ("img", "width", "320") in page.attributes
    assert ("img", "alt", "Figure of cell figures") in page.attributes


def test_f57_a_widget_leaves_its_text(page, text):
    assert "Grid of 12 drawings" in "".join(page.text)
    assert "model_id" not in text


def test_a_page_is_small_and_says_its_width(page, text):
    assert len(text) < 40_000
    assert ("meta", "content", "width=device-width, initial-scale=1") in page.attributes
    assert "@media (max-width" in text


def test_columns_of_words_are_set_to_the_left():
    import pandas as pd

    table = pd.DataFrame({"class": ["cup", EVIL], "images": [3, 12]}).to_html()
    shown = report.make_harmless(table)
    assert '<th class="words">class</th>' in shown
    assert '<td class="words">cup</td>' in shown
    assert "<td>12</td>" in shown
    assert "&lt;script&gt;" in shown


def test_a_folder_without_notebook_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="sketch run"):
        report.write_report(tmp_path)


# --- the index --------------------------------------------------------------


def add_run(runs, name, score=None, **facts):
    folder = runs / name
    folder.mkdir(parents=True)
    scores = {}
    if score:
        scores = {"oof_accuracy": score, "oof_low": score - 0.02, "oof_high": score}
    write_record(folder, scores=scores, **facts)
    return folder


def read_index(runs):
    return report.write_index(runs).read_text(encoding="utf-8")


def test_runs_are_sorted_by_score_within_their_notebook(runs):
    add_run(runs, "worse", 0.5)
    add_run(runs, "better", 0.95)
    add_run(runs, "unscored")
    add_run(runs, "audit", notebook="01_eda")
    text = read_index(runs)
    names = re.findall(r'<tr class="run \w+" data-text="([^"]*?) done', text)
    assert names == ["audit", "better", "lite0 &lt;b&gt;", "worse", "unscored"]
    assert text.index("01 · eda") < text.index("03 · train")


def test_the_index_escapes_and_asks_for_nothing(runs):
    add_run(runs, "sick", state="failed", error={"message": EVIL})
    page = Page(read_index(runs))
    assert page.tags.count("script") == 1
    assert [a for a in page.fetched() if REMOTE.search(a)] == []
    assert "".join(page.text).count("alert('x')") == 2


def test_the_only_script_is_allowed_by_its_hash_and_the_filter_hides_without_it(runs):
    text = read_index(runs)
    policy = next(v for _, n, v in Page(text).attributes if n == "content")
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[-1] == f"script-src 'sha256-{digest}'"
    assert '<p class="filter" hidden>' in text


def test_links_lead_to_pages_and_submissions_that_exist(runs):
    folder = runs / "lite0 <b>"
    report.write_report(folder)
    (folder / "submission.csv").write_text("ID\n")
    (runs / "submission.csv").write_text("ID\n")
    text = read_index(runs)
    assert 'href="lite0%20%3Cb%3E/03_train.html"' in text
    assert 'href="lite0%20%3Cb%3E/submission.csv"' in text
    assert 'href="submission.csv"' in text
    os.remove(folder / "03_train.html")
    assert "03_train.html" not in read_index(runs)


def test_a_sparkline_draws_one_line_per_fold(runs):
    folder = add_run(runs, "curves", 0.9)
    for fold in (0, 1):
        for epoch in range(5):
            record = {"fold": fold, "epoch": epoch, "train_loss": 1 - epoch / 9}
            record["val_accuracy"] = epoch / 9 + fold / 90
            workspace.append_jsonl(folder / "metrics.jsonl", record)
    drawn = report.draw_sparkline(workspace.read_jsonl(folder / "metrics.jsonl"))
    assert drawn.count("<polyline") == 2
    assert "val_accuracy, 2 curves, 0 to 0.456" in drawn
    assert drawn.split("points=")[1].count(",") == 5
    assert drawn in read_index(runs)


def test_a_curve_shows_the_last_of_several_runs_of_one_name():
    first = [{"fold": 0, "epoch": e, "val_accuracy": 0.1} for e in range(4)]
    again = [{"fold": 0, "epoch": e, "val_accuracy": 0.5 + e / 9} for e in range(3)]
    assert report.draw_sparkline(first + again) == report.draw_sparkline(again)


@pytest.mark.parametrize(
    "records", [[], [{"epoch": 1}], [{"val_accuracy": 0.5}], [{"note": "x"}] * 3]
)
def test_too_little_for_a_curve_draws_nothing(records):
    drawn = report.draw_sparkline(records)
    assert "polyline" not in drawn or "epoch" not in drawn


def test_an_interval_lies_on_a_scale_shared_by_the_notebook(runs):
    low = report.draw_whisker(("a", 0.5, 0.4, 0.6), (0.4, 1.0), 108)
    assert 'x1="4.0"' in low
    assert 'x2="37.3"' in low
    assert 'cx="20.7"' in low
    assert report.draw_whisker(("a", 0.5, None, None), (0.4, 1.0)) == ""


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"oof_accuracy": 0.9, "oof_low": 0.8, "oof_high": 1.0}, ("oof_accuracy", 0.9)),
        ({"oof_low": 0.8, "macro_f1": 0.7}, ("macro_f1", 0.7)),
        ({}, ("", 0.0)),
        (None, ("", 0.0)),
    ],
)
def test_the_headline_is_the_first_score_that_is_no_bound(scores, expected):
    assert report.read_score({"scores": scores})[:2] == expected


def test_a_broken_record_is_a_row_and_not_a_gap(runs):
    folder = runs / "broken"
    folder.mkdir()
    (folder / "run.json").write_text("{")
    assert "unreadable" in read_index(runs)
    assert report.read_record(runs / "never")["state"] == "not run"


def test_an_empty_folder_has_an_index_too(tmp_path):
    assert "No run yet" in read_index(tmp_path / "new")
