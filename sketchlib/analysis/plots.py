"""Every figure of tables and scores: tables in, Axes out.

The manner is that of printed science: white ground, dark grey ink, one warm accent
for what is judged, one cool for what it is judged against, labels at the marks
instead of legends. Data, training and scores are here, grids of pictures in
`sheets`. Limits: made for notebook width (about 9 inches); names longer than 28
columns are shortened in the middle.
"""

import unicodedata
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb, to_hex
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sketchlib.data import manifest as manifests

INK, GREY, FAINT = "#23272e", "#7d848c", "#dfe2e6"
WARM, COOL, PALE = "#bf3f24", "#2b6390", "#a9c3d6"
HEAT = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#f2b39c", WARM])
DEPTH = LinearSegmentedColormap.from_list("depth", ["#ffffff", PALE, COOL, "#12304a"])
FULL_NAMES = 40  # classes up to which each gets its own row
WIDTH = 9.0  # inches, a notebook's column
_LATIN = ("Inter", "Source Sans 3", "Helvetica Neue", "Arial", "Liberation Sans")
_HANGUL = (
    "Pretendard",
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "Apple SD Gothic Neo",
    "NanumGothic",
    "NanumBarunGothic",
    "Malgun Gothic",
    "Noto Sans CJK JP",
)


# --- theme ------------------------------------------------------------------


def set_theme() -> list[str]:
    """One theme for all figures; call it once, in `setup`.

    Returns:
        The font families in use. The second draws Hangul; with fewer than three
        no such font is installed, and Hangul names show as boxes.
    """
    families = find_fonts()
    mpl.rcParams.update(
        {
            "figure.dpi": 120,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.family": families,
            "font.size": 9,
            "text.color": INK,
            "text.parse_math": False,  # a class may be called "$100"
            "axes.unicode_minus": True,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 10,
            "axes.labelcolor": INK,
            "axes.labelsize": 9,
            "axes.edgecolor": GREY,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=[WARM, COOL, GREY, INK, PALE]),
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "xtick.major.size": 3,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
        }
    )
    return families


def find_fonts() -> list[str]:
    """Installed families: a text face, one with Hangul if any, DejaVu Sans."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    latin = [name for name in _LATIN if name in installed][:1]
    hangul = [name for name in _HANGUL if name in installed][:1]
    return [*latin, *hangul, "DejaVu Sans"]


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """One colour per class, by its place in the manifest, the same in all figures.

    Neighbours are far apart: hues step by the golden ratio, lightness in threes.
    """
    hues = (0.03 + 0.618034 * np.arange(len(classes))) % 1
    shades = np.array([(0.42, 0.74), (0.30, 0.84), (0.50, 0.60)])
    picked = shades[np.arange(len(classes)) % 3]
    rgb = hsv_to_rgb(np.column_stack([hues, picked]))
    return {name: to_hex(colour) for name, colour in zip(classes, rgb, strict=True)}


def shorten(text: str, columns: int = 28) -> str:
    """`text` cut in the middle to `columns` Latin letters; Hangul counts double."""
    text = " ".join(str(text).split())
    if sum(map(_columns, text)) <= columns:
        return text
    head = _cut(text, (columns - 1) * 2 // 3)
    tail = _cut(text[::-1], columns - 1 - sum(map(_columns, head)))[::-1]
    return f"{head}…{tail}"


def _columns(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _cut(text: str, columns: int) -> str:
    widths = np.cumsum([_columns(letter) for letter in text])
    return text[: int((widths <= columns).sum())]


def make_axes(ax: Axes | None, height: float, width: float = WIDTH) -> Axes:
    """`ax`, or new axes of that size in inches."""
    if ax is not None:
        return ax
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def make_rows(ax: Axes | None, names: Sequence[str], extra: float = 0.9) -> Axes:
    """Axes with one named row per entry, the first on top."""
    ax = make_axes(ax, 0.235 * len(names) + extra)
    ax.set_yticks(range(len(names)), [shorten(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    return ax


def mark_line(ax: Axes, value: float, text: str, *, dashed: bool = True) -> None:
    """A vertical reference line with its name on top."""
    style = (0, (4, 3)) if dashed else (0, (1, 2))
    ax.axvline(value, color=GREY, linewidth=1, linestyle=style, zorder=1)
    ax.annotate(
        text,
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 1),
        textcoords="offset points",
        color=GREY,
        fontsize=8,
        va="bottom",
    )


# --- data -------------------------------------------------------------------


def plot_class_counts(manifest: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Training images of each class; from 41 classes on, all of them by rank."""
    train = manifests.train_rows(manifest)
    names = manifests.class_names(manifest)
    counts = train["label"].value_counts().reindex(range(len(names)), fill_value=0)
    if len(names) <= FULL_NAMES:
        return _bar_counts(counts.to_numpy(), names, ax)
    order = np.argsort(counts.to_numpy(), kind="stable")
    ranked = counts.to_numpy()[order]
    ax = make_axes(ax, 3.2)
    ax.fill_between(range(len(ranked)), ranked, step="mid", color=PALE, linewidth=0)
    ax.axhline(np.median(ranked), color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate(
        f"median {np.median(ranked):.0f}",
        (0, np.median(ranked)),
        xytext=(4, 3),
        textcoords="offset points",
        color=INK,
        fontsize=8,
    )
    fewest = ", ".join(f"{shorten(names[k], 16)} {counts[k]}" for k in order[:3])
    most = ", ".join(f"{shorten(names[k], 16)} {counts[k]}" for k in order[:-4:-1])
    ax.set(xlim=(0, len(ranked) - 1), ylim=(0, ranked.max() * 1.15), ylabel="images")
    ax.set_xlabel(f"classes by size · fewest: {fewest} · most: {most}")
    ax.set_title(f"Images per class, {len(names)} classes, {len(train):,} images")
    return ax


def _bar_counts(counts: np.ndarray, names: list[str], ax: Axes | None) -> Axes:
    ax = make_rows(ax, names)
    colours = class_colours(names)
    ax.barh(names_range(names), counts, 0.7, color=[colours[name] for name in names])
    for row, count in enumerate(counts):
        text = ax.text(count, row, f" {count} ", va="center", fontsize=8)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    mark_line(ax, float(np.median(counts)), f"median {np.median(counts):.0f}")
    ax.grid(False)
    ax.set(xlabel="images", xlim=(0, counts.max() * 1.08))
    ax.set_title(f"Images per class, {counts.sum():,} in all", pad=18)
    return ax


def names_range(names: Sequence[str]) -> range:
    """Row numbers of `names`."""
    return range(len(names))


def plot_sizes(findings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Width against height of the readable pictures, in pixels, both logarithmic."""
    seen = _readable(findings)
    ax = make_axes(ax, 4.2, 5.2)
    alpha = float(np.clip(300 / len(seen), 0.06, 0.6))
    ax.scatter(seen["width"], seen["height"], s=9, color=COOL, alpha=alpha, linewidth=0)
    sides = seen[["width", "height"]].to_numpy()
    ends = (sides.min() / 1.25, sides.max() * 1.25)
    for ratio, text in ((1.0, "1:1"), (2.0, "2:1"), (0.5, "1:2")):
        line = np.array(ends)
        ax.plot(line, line / ratio, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)))
        at = (ends[1], ends[1] / ratio) if ratio >= 1 else (ends[1] / 2, ends[1])
        label = ax.text(*at, text, ha="right", va="top", color=GREY, fontsize=8)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(mpl.ticker.LogLocator(base=2, subs=(1.0,)))
        axis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
        axis.set_minor_locator(mpl.ticker.NullLocator())
    ax.set(xlabel="width, px", ylabel="height, px")
    middle = seen[["width", "height"]].median()
    ax.set_title(
        f"Picture sizes, {len(seen):,} pictures, median "
        f"{middle['width']:.0f} × {middle['height']:.0f}"
    )
    return ax


def _readable(findings: pd.DataFrame) -> pd.DataFrame:
    """The rows that could be measured; all when the column is missing."""
    if "readable" not in findings:
        return findings
    return findings[findings["readable"].astype(bool)]


def plot_brightness(findings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Mean grey level of the readable pictures, 0 black to 255 white."""
    seen = _readable(findings)["brightness"].dropna().to_numpy()
    ax = _plot_spread(seen, (0.0, 255.0), "{:.0f}", ax)
    ax.set_xlabel("mean grey level, 0 black to 255 white   shaded: middle 95 %")
    ax.set_title("Brightness")
    return ax


def plot_ink(findings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of each readable picture that is inked."""
    seen = _readable(findings)["ink"].dropna().to_numpy()
    top = float(np.clip(np.quantile(seen, 0.999) * 1.2, 0.05, 1)) if len(seen) else 1.0
    ax = _plot_spread(seen.clip(max=top), (0.0, top), "{:.1%}", ax)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_xlabel("share of the picture that is inked   shaded: middle 95 %")
    ax.set_title("Ink")
    return ax


def _plot_spread(
    values: np.ndarray, ends: tuple[float, float], template: str, ax: Axes | None
) -> Axes:
    """A histogram with its median and the middle 95 % marked."""
    ax = make_axes(ax, 2.6, 5.2)
    ax.hist(values, bins=60, range=ends, color=PALE, linewidth=0)
    if len(values):
        low, middle, high = np.quantile(values, [0.025, 0.5, 0.975])
        ax.axvspan(low, high, color=FAINT, alpha=0.5, zorder=0, linewidth=0)
        mark_line(ax, middle, f"median {template.format(middle)}")
    ax.set(xlim=ends, ylabel="pictures")
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return ax


def plot_flags(findings: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How many pictures carry each flag; a picture may carry several."""
    flags = findings["flags"].fillna("").astype(str).str.split(";").explode()
    counts = flags[flags != ""].value_counts()
    names = [str(name).replace("_", " ") for name in counts.index]
    ax = make_rows(ax, names or ["no flags"])
    ax.barh(names_range(names), counts.to_numpy(), 0.7, color=PALE)
    for row, count in enumerate(counts):
        share = f" {count:,}  ({100 * count / len(findings):.1f} %)"
        ax.text(count, row, share, va="center", fontsize=8)
    ax.grid(False)
    ax.set(xlabel="pictures", xlim=(0, max(counts.max() * 1.2, 1) if names else 1))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_title(f"Flags raised, {len(findings):,} pictures looked at")
    return ax


def plot_fold_balance(
    folds: pd.DataFrame, manifest: pd.DataFrame, *, ax: Axes | None = None
) -> Axes:
    """Share of each class that each fold holds out; even folds lie on the line.

    Args:
        folds: image_id, group, fold.
        manifest: gives the class of each image.
        ax: where to draw.
    """
    merged = folds.merge(manifest[["image_id", "label"]], on="image_id")
    table = pd.crosstab(merged["label"], merged["fold"])
    held = table[[column for column in table if column >= 0]]
    shares = held.div(table.sum(axis=1), axis=0).to_numpy()  # (K, F)
    rng = np.random.default_rng(0)
    ax = make_axes(ax, 3.2)
    for column in range(shares.shape[1]):
        spread = column + rng.uniform(-0.28, 0.28, len(shares))
        alpha = float(np.clip(60 / len(shares), 0.2, 0.8))
        ax.plot(spread, shares[:, column], "o", ms=3.5, color=COOL, alpha=alpha, mew=0)
    even = float(held.to_numpy().sum() / table.to_numpy().sum() / shares.shape[1])
    ax.axhline(even, color=WARM, linewidth=1, zorder=1)
    ax.annotate(
        f"even: {even:.0%}",
        (1, even),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        color=WARM,
        va="center",
        fontsize=8.5,
    )
    grouped = (
        merged[merged["fold"] >= 0]
        .groupby("fold")
        .agg(images=("image_id", "size"), groups=("group", "nunique"))
    )
    names = [
        f"fold {fold}\n{row.images:,} images\n{row.groups:,} groups"
        for fold, row in zip(grouped.index, grouped.itertuples(), strict=True)
    ]
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, min(1.0, max(2 * even, shares.max() * 1.1)))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="y")
    ax.set_ylabel("share of a class's images")
    ax.set_title(f"Fold balance, one point per class ({len(shares)})")
    return ax


# --- training ---------------------------------------------------------------


def plot_fold_scores(
    table: pd.DataFrame,
    *,
    column: str = "accuracy",
    interval: tuple[float, float] | None = None,
    baseline: float | None = None,
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """A point per fold, their mean, its interval, the baseline and chance.

    Args:
        table: `scores.score_folds`: fold and `column`.
        column: accuracy, top5 or macro_f1 (0-1).
        interval: 95 % bootstrap ends from `scores.summarise`; None draws the
            standard deviation over folds instead.
        baseline: score to beat, 0-1, e.g. the linear probe's.
        chance: 1 / classes.
        ax: where to draw.
    """
    values = table[column].to_numpy(float)
    names = [f"fold {fold}" for fold in table["fold"]]
    ax = make_rows(ax, [*names, "mean"], 1.1)
    ax.plot(values, range(len(values)), "o", color=COOL, ms=6)
    for row, value in enumerate(values):
        ax.annotate(
            f"{value:.3f}",
            (value, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ends, meaning = _mean_ends(values, interval)
    mean = float(values.mean())
    ax.plot(ends, [len(values)] * 2, color=WARM, linewidth=2.5, solid_capstyle="butt")
    ax.plot(mean, len(values), "D", color=WARM, ms=7)
    ax.annotate(
        f"{mean:.3f}  ({meaning} {ends[0]:.3f} to {ends[1]:.3f})",
        (ends[1], len(values)),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        color=WARM,
        fontsize=8.5,
    )
    ax.set_xlabel(f"{column.replace('_', ' ')}, 0-1")
    _set_score_limits(ax, [*values, *ends], baseline, chance)
    ax.set_title(f"{_title_of(column)} by fold", pad=20)
    return ax


def _title_of(column: str) -> str:
    titles = {"macro_f1": "Macro F1", "top5": "Top-5 accuracy", "log_loss": "Log loss"}
    return titles.get(column, column.replace("_", " ").capitalize())


def _mean_ends(
    values: np.ndarray, interval: tuple[float, float] | None
) -> tuple[tuple[float, float], str]:
    if interval is not None:
        return interval, "95 % bootstrap"
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return (values.mean() - spread, values.mean() + spread), "± sd over folds"


def _set_score_limits(
    ax: Axes, values: Sequence[float], baseline: float | None, chance: float | None
) -> None:
    """Zoom to the scores and the baseline; chance off the axis is named below it."""
    shown = [*values, *([baseline] if baseline is not None else [])]
    if baseline is None and chance is not None:
        shown.append(chance)
    low, high = min(shown), max(shown)
    margin = max(0.1 * (high - low), 0.01)
    # Half the axis is room for the text to the right of the marks.
    room = 0.2 if baseline is None and chance is None else 0.55  # for what is written
    left, right = max(0.0, low - margin), high + margin + room * (high - low + margin)
    ax.set_xlim(left, right)
    ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= min(right, 1)])
    ax.spines["bottom"].set_bounds(left, min(right, 1.0))
    if baseline is not None:
        mark_line(ax, baseline, f"baseline {baseline:.3f}")
    if chance is None:
        return
    if chance >= left:
        mark_line(ax, chance, f"chance {chance:.3f}", dashed=False)
        return
    # Far below: said in words, since an axis from chance would flatten the rest.
    ax.set_xlabel(f"{ax.get_xlabel()}   ← chance {chance:.3f}, off the axis")


# --- comparing runs ---------------------------------------------------------


def plot_score_ladder(
    rows: pd.DataFrame,
    *,
    score: str = "accuracy",
    baseline: float | None = None,
    chance: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Runs by score, best on top, with 95 % bootstrap intervals.

    Args:
        rows: name, mean, low, high (0-1); an optional bool `marked` row is accented.
        score: what the numbers are.
        baseline: score to beat, 0-1.
        chance: 1 / classes.
        ax: where to draw.
    """
    ranked = rows.sort_values("mean", ascending=False).reset_index(drop=True)
    ax = make_rows(ax, ranked["name"].tolist(), 1.1)
    marked = ranked.get("marked", pd.Series(False, index=ranked.index))
    draw_intervals(ax, ranked, "mean", marked.to_numpy(bool))
    values = ranked[["mean", "low", "high"]].to_numpy().ravel()
    ax.set_xlabel(f"{score}, 0-1, with 95 % bootstrap interval")
    _set_score_limits(ax, values.tolist(), baseline, chance)
    ax.set_title(f"Runs by {score}", pad=20)
    return ax


def draw_intervals(
    ax: Axes,
    table: pd.DataFrame,
    column: str,
    marked: np.ndarray,
    template: str = "{:.3f}",
) -> None:
    """A dot with its `low` to `high` bar on each row, the value beside it."""
    for row, (value, low, high) in enumerate(
        table[[column, "low", "high"]].itertuples(index=False)
    ):
        colour = WARM if marked[row] else COOL
        ax.plot([low, high], [row, row], color=colour, linewidth=2, alpha=0.55)
        ax.plot(value, row, "o", color=colour, ms=6)
        ax.annotate(
            template.format(value),
            (high, row),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour if marked[row] else INK,
        )


def plot_gains(
    table: pd.DataFrame, *, subject: str = "Gain", ax: Axes | None = None
) -> Axes:
    """Accuracy won or lost, in points, with 95 % paired bootstrap intervals.

    Args:
        table: name, gain, low, high (differences of accuracy, -1 to 1).
        subject: the title.
        ax: where to draw.
    """
    points = table.assign(**{c: 100 * table[c] for c in ("gain", "low", "high")})
    ax = make_rows(ax, table["name"].tolist(), 1.0)
    clear = (table["low"] > 0) | (table["high"] < 0)
    draw_intervals(ax, points, "gain", clear.to_numpy(), "{:+.1f}")
    ax.axvline(0, color=INK, linewidth=0.9, zorder=1)
    reach = max(points[["low", "high"]].abs().to_numpy().max() * 1.25, 0.5)
    ax.set(xlim=(-reach, reach))
    ax.set_xlabel(
        "points of accuracy, with 95 % paired bootstrap interval; red: clear of 0"
    )
    ax.set_title(subject)
    return ax
