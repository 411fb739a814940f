"""The pages in a real browser, where Debian's chromium is installed."""

import contextlib
import shutil

import pytest
from toys import write_notebook

from sketchlib import workspace
from sketchlib.workbook import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium here"),
]
FIGURE = """\
import matplotlib.pyplot as plt, pandas as pd
from IPython.display import HTML, display
display(pd.DataFrame({"class": ["고양이", "<script>alert(1)</script>"], "n": [1, 2]}))
display(HTML("<img src='https://example.org/x.png' onerror='console.error(1)'>"))
display(pd.DataFrame([range(100, 160)] * 2))
display(HTML("<script>console.error('ran')</script>"))
print('x' * 300)
plt.plot([0, 1]); plt.show()"""


@contextlib.contextmanager
def browse(page, *, width=1000, scripts=True):
    """The page in a browser of its own, what its console said, what it asked for."""
    from playwright.sync_api import sync_playwright

    said, asked = [], []
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(
            viewport={"width": width, "height": 900}, java_script_enabled=scripts
        )
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        yield tab, said, asked
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run's page made of what a hostile notebook shows, and the index."""
    from sketchlib.workbook import jobs, runner

    folder = tmp_path_factory.mktemp("pages")
    path = write_notebook(folder / "99_toy.ipynb", [("run", FIGURE)])
    values = {"runs_dir": str(folder / "runs"), "run_name": "한글 <b>"}
    assert runner.run_notebook(jobs.make_job(path, values)).state == "done"
    record = folder / "runs" / "한글 <b>" / "run.json"
    note = {"hypothesis": "<script>console.error('index')</script>"}
    workspace.write_json(record, workspace.read_json(record) | note)
    report.write_report(record.parent)
    return [record.with_name("99_toy.html"), report.write_index(folder / "runs")]


@pytest.mark.parametrize("which", [0, 1], ids=["run", "index"])
def test_a_page_asks_for_nothing_remote_and_the_console_stays_empty(pages, which):
    with browse(pages[which]) as (tab, said, asked):
        tab.wait_for_timeout(500)
        assert said == []
        assert asked
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("which", [0, 1], ids=["run", "index"])
def test_a_page_reads_the_same_without_javascript(pages, which):
    texts = []
    for scripts in (True, False):
        with browse(pages[which], scripts=scripts) as (tab, _, _):
            texts.append(tab.inner_text("body").split())
    filled = [word for word in texts[0] if word != "Filter"]  # a box that needs them
    assert filled == texts[1]
    assert "한글" in " ".join(texts[1])


@pytest.mark.parametrize("which", [0, 1], ids=["run", "index"])
def test_a_page_fits_a_phone(pages, which):
    """Wide tables and figures scroll in their own boxes, the page does not."""
    with browse(pages[which], width=400) as (tab, _, _):
        root = "document.documentElement"
        assert tab.evaluate(f"{root}.scrollWidth") <= 400
        small = tab.evaluate(
            "[...document.querySelectorAll('p, td, th, h1, h2')]"
            ".filter(one => parseFloat(getComputedStyle(one).fontSize) < 11)"
            ".map(one => one.textContent)"
        )
        assert small == []
