"""The pictures of the README, from the runs of `make demo`: `make figures`.

Reads `runs/` and `data/demo`, writes `docs/img/*.png`; the pages are photographed
where chromium is installed. `--race RUN` draws the race of a run of 02_augmentation
instead. Limits: needs the demo's runs audit, lite0 and lite1.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt

from sketchlib import workspace
from sketchlib.analysis import breakdown, looking, plots, samples, scores, sheets
from sketchlib.data import manifest
from sketchlib.training import predictions

ROOT = workspace.repo_root()
DATA, RUNS, IMAGES = ROOT / "data" / "demo", ROOT / "runs", ROOT / "docs" / "img"


def save(name: str) -> None:
    """Write the current figure and say where."""
    path = IMAGES / f"{name}.png"
    plt.gcf().savefig(path, dpi=110, bbox_inches="tight", facecolor="white")
    plt.close("all")
    print(path.relative_to(ROOT))


def show_pairs() -> None:
    """A pair of each kind the audit found."""
    pairs = pd.read_csv(RUNS / "audit" / "pairs.csv")
    some = pairs.groupby("kind").head(2).sort_values("score").head(8)
    ids = [*some["image_id_a"], *some["image_id_b"]]
    sheets.plot_pairs(some, samples.read_ids(DATA, ids), columns=4, title="")
    save("pairs")


def show_attention() -> None:
    """Hits and mistakes of lite0 with what it looked at."""
    table = manifest.read_manifest(DATA)
    folder = RUNS / "lite0"
    record = workspace.read_json(folder / "run.json")
    rows = breakdown.per_picture(
        predictions.read_predictions(folder / "oof.npz"), table
    )
    rows = pd.concat([rows[~rows["correct"]].head(6), rows[rows["correct"]].tail(6)])
    glass = looking.open_run(record, folder, table, DATA, RUNS / "cache")
    cams = glass.attend(rows, method="gradcam", column="predicted")
    sheets.plot_mistakes(glass.pictures(rows), rows, cams=cams, columns=6, title="")
    save("attention")


def show_scores() -> None:
    """The demo's runs, their blend and the probe, with intervals."""
    names = ["lite0", "lite1", "ensemble"]
    records = {name: workspace.read_json(RUNS / name / "run.json") for name in names}
    found = {name: record["scores"] for name, record in records.items()}
    found["linear probe"] = records["lite0"]["probe"]
    plots.plot_score_ladder(scores.make_ladder(found))
    save("scores")


def show_race(folder: Path) -> None:
    """Gains of the settings of a race over none, with seconds an epoch."""
    ranked = pd.read_csv(folder / "standings.csv")
    names = [f"{r['name']} · {r['seconds']:.0f} s" for _, r in ranked.iterrows()]
    title = "Gain over none, seconds an epoch"
    axes = plots.plot_gains(ranked.assign(name=names), subject=title)
    axes.set_xlabel("points of accuracy, with 95 % paired interval; red: clear of 0")
    save("race")


def photograph(page: Path, name: str, width: int, height: int) -> None:
    """A picture of a page as a browser of that many pixels shows it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if not browser or not page.exists():
        print(f"{name}: not made, it needs chromium and {page}")
        return
    path = IMAGES / f"{name}.png"
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        command = [browser, *flags, f"--screenshot={path}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=180)
    print(path.relative_to(ROOT))


def main() -> int:
    """Draw all, or the race; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--race", type=Path, help="a run of 02_augmentation")
    asked = parser.parse_args()
    if asked.race:
        plots.set_theme()
        show_race(asked.race)
        return 0
    if not (RUNS / "ensemble" / "run.json").exists():
        print("docs/make_figures.py needs the demo's runs: `make demo` first")
        return 2
    IMAGES.mkdir(parents=True, exist_ok=True)
    plots.set_theme()
    show_pairs()
    show_attention()
    show_scores()
    photograph(RUNS / "index.html", "index", 1000, 900)
    photograph(RUNS / "retrospective" / "07_retrospective.html", "report", 1000, 1500)
    return 0


if __name__ == "__main__":
    sys.exit(main())
