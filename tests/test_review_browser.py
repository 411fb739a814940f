"""The review in a real browser: JupyterLab, keys, the file, the next run's folds.

Needs a Chromium (`SKETCHBOOK_CHROMIUM`, or one on the path); none is downloaded.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from sketchlib.workbook import cli

CHROMIUM = os.environ.get("SKETCHBOOK_CHROMIUM") or shutil.which("chromium")
PATIENCE = 120_000  # milliseconds; JupyterLab on a busy core starts slowly
STAIRS = "train/stairs/sketch_0.JPEG"  # sketch_1 is its flip
BLANK = "train/cross/sketch_2.JPEG"
CELL = """
from pathlib import Path
from sketchlib.data import manifest
from sketchlib.workbook import review
data = Path({data!r})
desk = review.open_desk(Path({run!r}), data, manifest.read_manifest(data), by="browser")
few = [one for one in desk.items if {{{stairs!r}, {blank!r}}} & set(one.image_ids)]
desk = review.Desk(few, desk.manifest, data, desk.path, by="browser")
review.show(desk, shown=3)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine"),
]


def run_audit(world, runs):
    asked = ["run", "01_eda", "-p", "data_dir", str(world), "-p", "folds", "3"]
    assert cli.main([*asked, "--runs", str(runs)]) == 0
    return pd.read_csv(runs / "audit" / "folds.csv").set_index("image_id")


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab of our own, ended by its process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = tmp_path / "lab"
    root.mkdir()
    own = {f"JUPYTER_{name}_DIR": str(root / name) for name in ("CONFIG", "RUNTIME")}
    own |= {"IPYTHONDIR": str(root / "ipython")}
    environment = {k: v for k, v in os.environ.items() if k != "SKETCHBOOK_HEADLESS"}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *(f"--port={port}", f"--ServerApp.root_dir={root}"),
                "--IdentityProvider.token=secret",
            ],
            env=environment | own, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/api?token=secret", server, tmp_path / "lab.log")
        yield root, address
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address, server, log):
    for _ in range(240):
        try:
            return urllib.request.urlopen(address, timeout=2).read()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture
def page():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        opened = browser.new_page(viewport={"width": 1100, "height": 900})
        opened.set_default_timeout(PATIENCE)
        yield opened
        browser.close()


def open_panel(page, address, root, world, runs):
    cell = CELL.format(
        data=str(world), run=str(runs / "audit"), stairs=STAIRS, blank=BLANK
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, root / "review.ipynb")
    page.goto(f"{address}/lab/tree/review.ipynb?token=secret")
    page.locator(".jp-Cell .cm-content").first.click()
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]')
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".sketch-review .pictures img")
    return page.locator(".sketch-review")


def press(page, panel, key, *, says):
    page.keyboard.press(key)
    panel.locator(".told", has_text=says).wait_for()


def test_keys_pressed_in_jupyterlab_change_the_folds_of_the_next_run(
    own_world, tmp_path, lab, page
):
    runs = tmp_path / "runs"
    before = run_audit(own_world, runs)
    groups = before["group"]
    assert groups[STAIRS] == groups[STAIRS.replace("_0", "_1")]
    root, address = lab
    panel = open_panel(page, address, root, own_world, runs)
    shots = Path(os.environ.get("SKETCHBOOK_SHOTS", tmp_path))
    page.wait_for_function("document.activeElement.classList.contains('sketch-review')")
    cells = page.locator(".jp-Cell").count()
    page.screenshot(path=shots / "review-pair.png")
    press(page, panel, "k", says="written: keep")
    press(page, panel, "u", says="took back: keep")
    while (named := panel.locator(".pictures .id").all_inner_texts()) != [BLANK]:
        if STAIRS in named:
            press(page, panel, "n", says=f"written: not_duplicate {named[0]}")
        else:
            press(page, panel, "k", says=f"written: keep {named[0]}")
    page.screenshot(path=shots / "review-flag.png")
    press(page, panel, "d", says=f"written: drop {BLANK}")
    table = pd.read_csv(
        own_world.with_name("data-decisions") / "decisions.csv", keep_default_na=False
    )
    assert page.locator(".jp-Cell").count() == cells  # `d` is no shortcut of the lab's
    assert table["action"].tolist()[:2] == ["keep", "undo"]
    assert STAIRS in set(table.loc[table["action"] == "not_duplicate", "id"])
    assert table.iloc[-1][["id", "action", "by"]].tolist() == [BLANK, "drop", "browser"]
    after = run_audit(own_world, runs)
    assert (after["group"] == after.at[STAIRS, "group"]).sum() == 1
    assert BLANK in before.index
    assert BLANK not in after.index
    copied = runs / "audit" / "decisions.csv"
    assert len(pd.read_csv(copied)) == len(table)


def test_a_relabel_by_keys_and_by_mouse(own_world, tmp_path, lab, page):
    runs = tmp_path / "runs"
    run_audit(own_world, runs)
    root, address = lab
    panel = open_panel(page, address, root, own_world, runs)
    shots = Path(os.environ.get("SKETCHBOOK_SHOTS", tmp_path))
    page.keyboard.press("r")
    panel.locator("select").wait_for()
    page.keyboard.type("squ")  # a list answers to the first letters
    page.screenshot(path=shots / "review-relabel.png")
    press(page, panel, "Enter", says="written: relabel")
    panel.get_by_role("button", name="Undo").click()
    panel.locator(".told", has_text="took back: relabel").wait_for()
    panel.get_by_role("button", name="Relabel").click()
    panel.locator("select").select_option("circle")
    panel.get_by_role("button", name="Set class").click()
    panel.locator(".told", has_text="written: relabel").wait_for()
    page.screenshot(path=shots / "review-told.png")
    path = own_world.with_name("data-decisions") / "decisions.csv"
    table = pd.read_csv(path, keep_default_na=False)
    assert table["action"].tolist() == ["relabel", "undo", "relabel"]
    assert table["new"].tolist() == ["square", "square", "circle"]
    after = run_audit(own_world, runs)
    assert len(after) == 48
    findings = pd.read_csv(runs / "audit" / "folds.csv")
    assert table["id"].iloc[-1] in set(findings["image_id"])
