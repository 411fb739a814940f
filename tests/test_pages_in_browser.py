"""The pages in a real browser, where Debian's chromium is installed."""

import re
import shutil
import subprocess

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
display(HTML("<script>console.error('ran')</script>"))
plt.plot([0, 1]); plt.show()"""


def browse(page, folder, *flags):
    """What the browser says of a page: its log, and its document after scripts."""
    folder.mkdir(exist_ok=True)
    log = folder / "net.json"
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--v=0", f"--log-net-log={log}"),
            *("--disable-background-networking", "--disable-component-update"),
            *("--no-first-run", f"--user-data-dir={folder / 'profile'}"),
            *(*flags, "--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console, log.read_text(errors="replace")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run's page made of what a hostile notebook shows, and the index."""
    from sketchlib.workbook import runner

    folder = tmp_path_factory.mktemp("pages")
    path = write_notebook(folder / "99_toy.ipynb", [("run", FIGURE)])
    values = {"runs_dir": str(folder / "runs"), "run_name": "한글 <b>"}
    assert runner.run_notebook(runner.make_job(path, values)).state == "done"
    record = folder / "runs" / "한글 <b>" / "run.json"
    note = {"hypothesis": "<script>console.error('index')</script>"}
    workspace.write_json(record, workspace.read_json(record) | note)
    report.write_report(record.parent)
    return [record.with_name("99_toy.html"), report.write_index(folder / "runs")]


@pytest.mark.parametrize("which", [0, 1], ids=["run", "index"])
def test_a_page_asks_for_nothing_remote_and_the_console_stays_empty(
    pages, which, tmp_path
):
    _, console, network = browse(pages[which], tmp_path)
    assert console == []
    asked = set(re.findall(r'"url":"(https?://[^"]+)"', network))
    own = ("google", "gstatic", "gvt1")  # the browser's own calls home
    assert not [url for url in asked if not any(word in url for word in own)]


@pytest.mark.parametrize("which", [0, 1], ids=["run", "index"])
def test_a_page_reads_the_same_without_javascript(pages, which, tmp_path):
    with_script, _, _ = browse(pages[which], tmp_path / "a")
    without, _, _ = browse(
        pages[which], tmp_path / "b", "--blink-settings=scriptEnabled=false"
    )
    texts = [re.sub(r"<[^>]+>|\s+", " ", page) for page in (with_script, without)]
    assert texts[0] == texts[1]
    assert "한글" in texts[1]
