"""The review: questions for a person in doubt order, answers appended to a file.

The queue is made from what an audit wrote, so that notebook, terminal and widget ask
the same. What is answered is read from `decisions.csv`, never remembered elsewhere:
a kernel may die at any moment. Headless, the same questions stand as a gallery of
plain HTML. Limits: a verdict takes effect in the next run of 01_eda, not in this one.
"""

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.analysis import samples
from sketchlib.data import audit, decisions, groups, images
from sketchlib.workbook import parameters, session

_DOUBTERS = {
    "neighbours": "its neighbours are",
    "folder": "the others of its folder are",
    "model": "a trained model sees",
}
CERTAIN = ("bytes", "pixels")  # kinds of pairs that leave nothing to judge
_SEEN_PX = 320  # longest side of a picture in the widget
_TILE_PX = 112  # and in a gallery


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        kind: `pair`, `conflict`, `flag` or `suspect`.
        image_ids: one picture, or the two of a pair.
        why: kind of the pair, names of the flags, what the neighbours are.
        score: likeness of a pair, suspicion of a label; NaN for flags.
        suggestion: a class to relabel to, empty where there is none.
    """

    kind: str
    image_ids: tuple[str, ...]
    why: str
    score: float = float("nan")
    suggestion: str = ""

    def is_answered(
        self, verdicts: decisions.Verdicts, names: Mapping[str, str]
    ) -> bool:
        """Whether a standing verdict is about this question.

        Args:
            verdicts: what stands.
            names: class name by picture, as the audit saw it: a relabel it already
                saw was an answer to an earlier question.
        """
        if len(self.image_ids) == 2 and frozenset(self.image_ids) in verdicts.pairs:
            return True
        if len(self.image_ids) == 1 and self.image_ids[0] in verdicts.kept:
            return True
        new = verdicts.labels
        return any(
            one in verdicts.dropped or new.get(one, names[one]) != names[one]
            for one in self.image_ids
        )


# --- the queue ----------------------------------------------------------------------


def make_queue(
    pairs: pd.DataFrame,
    copies: pd.DataFrame,
    findings: pd.DataFrame,
    manifest: pd.DataFrame,
    *,
    threshold: float,
    suspects: pd.DataFrame | None = None,
) -> list[Item]:
    """Questions, the most doubtful first: pairs, conflicts, suspects, flags.

    Args:
        pairs: `image_id_a, image_id_b, kind, score`.
        copies: table of `groups.make_groups`.
        findings: table of the audit.
        manifest: under the verdicts given so far.
        threshold: likeness from which two pictures were called one.
        suspects: `image_id, suggestion, suspicion` of labels that may be wrong, and
            `source` where it is not the neighbours.
    """
    labels = manifest.set_index("image_id")["label"]
    labels = labels[(manifest["subset"] == "train").to_numpy()]
    ends = [pairs["image_id_a"].map(labels), pairs["image_id_b"].map(labels)]
    is_conflict = ends[0].notna() & ends[1].notna() & (ends[0] != ends[1])
    is_moot = ends[0].isna() & ends[1].isna()  # two test pictures: nothing hangs on it
    open_pairs = pairs[~is_conflict & ~is_moot & ~pairs["kind"].isin(CERTAIN)]
    doubt = (open_pairs["score"] - threshold).abs().sort_values(kind="stable")
    queue = [_pair_item("pair", row) for row in _rows(open_pairs.loc[doubt.index])]
    queue += [_pair_item("conflict", row) for row in _rows(pairs[is_conflict])]
    queue += _indirect_conflicts(pairs[is_conflict], copies, manifest)
    if suspects is not None and len(suspects):
        ranked = suspects[suspects["image_id"].isin(labels.index)]
        ranked = ranked.sort_values("suspicion", ascending=False, kind="stable")
        queue += [_suspect_item(row) for row in _rows(ranked)]
    return queue + _flag_items(findings, set(labels.index))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return table.to_dict("records")  # type: ignore[return-value]


def _pair_item(kind: str, row: Mapping[str, Any]) -> Item:
    ids = (row["image_id_a"], row["image_id_b"])
    return Item(kind, ids, str(row["kind"]), float(row["score"]))


def _suspect_item(row: Mapping[str, Any]) -> Item:
    name = str(row["suggestion"])
    why = f"{_DOUBTERS[row.get('source', 'neighbours')]} {name}"
    return Item("suspect", (row["image_id"],), why, float(row["suspicion"]), name)


def _indirect_conflicts(
    direct: pd.DataFrame, copies: pd.DataFrame, manifest: pd.DataFrame
) -> list[Item]:
    """Groups with two labels whose pictures are only joined through a third."""
    seen = {*direct["image_id_a"], *direct["image_id_b"]}
    items = []
    for _, rows in groups.label_conflicts(copies, manifest).groupby("group", sort=True):
        firsts = rows.drop_duplicates("label").head(2)
        if seen.isdisjoint(rows["image_id"]):
            score = float(firsts["score"].min())
            items.append(Item("conflict", tuple(firsts["image_id"]), "group", score))
    return items


def _flag_items(findings: pd.DataFrame, train: set[str]) -> list[Item]:
    """Flagged training pictures, those with the rarest flag first."""
    hits = {
        flag: list(findings.loc[audit.flagged(findings, flag), "image_id"])
        for flag in audit.FLAGS
    }
    why: dict[str, list[str]] = {}
    for flag in sorted(hits, key=lambda flag: len(hits[flag])):
        for image_id in hits[flag]:
            if image_id in train:
                why.setdefault(image_id, []).append(flag.replace("_", " "))
    return [Item("flag", (one,), ", ".join(flags)) for one, flags in why.items()]


# --- the desk -----------------------------------------------------------------------


@dataclass
class Desk:
    """A review in progress; everything that matters is in the file.

    Attributes:
        items: the queue.
        manifest: the rows the questions are about.
        data_dir: where the pictures are; only read.
        path: `decisions.csv`.
        by: who answers; empty for the name of the account.
        place: number of the current question.
    """

    items: list[Item]
    manifest: pd.DataFrame
    data_dir: Path
    path: Path
    by: str = ""
    place: int = 0
    verdicts: decisions.Verdicts = field(default_factory=decisions.Verdicts)

    def __post_init__(self) -> None:
        rows = self.manifest.set_index("image_id")
        self.names: dict[str, str] = rows["class_name"].to_dict()
        self.subsets: dict[str, str] = rows["subset"].to_dict()
        train = self.manifest[self.manifest["subset"] == "train"]
        self.classes: list[str] = sorted(set(train["class_name"]))
        self.refresh()
        self.place = self._find_open(0)

    def refresh(self) -> None:
        """Read the file again: another person, or a terminal, may have written."""
        self.verdicts = decisions.read_decisions(self.path)

    @property
    def current(self) -> Item | None:
        """The question at hand; None behind the last."""
        return self.items[self.place] if self.place < len(self.items) else None

    def is_open(self, item: Item) -> bool:
        """Whether nobody answered it yet."""
        return not item.is_answered(self.verdicts, self.names)

    @property
    def open_items(self) -> list[Item]:
        """The questions without an answer, in order."""
        return [item for item in self.items if self.is_open(item)]

    @property
    def progress(self) -> str:
        """`3 of 12 answered`."""
        left = len(self.open_items)
        return f"{len(self.items) - left} of {len(self.items)} answered"

    def _find_open(self, start: int) -> int:
        order = [*range(start, len(self.items)), *range(start)]
        opens = (place for place in order if self.is_open(self.items[place]))
        return next(opens, len(self.items))

    def skip(self) -> None:
        """The next open question, this one unanswered."""
        self.place = self._find_open((self.place + 1) % max(len(self.items), 1))

    def decide(
        self, action: str, image_id: str = "", new: str = ""
    ) -> decisions.Decision:
        """Append a verdict on the current question and go to the next.

        Args:
            action: `keep`, `drop`, `not_duplicate` or `relabel`.
            image_id: which picture of a pair is dropped or relabelled.
            new: the class of a relabel.
        Raises:
            ValueError: the verdict does not fit the question.
        """
        item = self.current
        if item is None:
            raise ValueError("every question is answered; run 01_eda for new ones")
        target = image_id or item.image_ids[-1]
        if action in ("keep", "not_duplicate"):
            target, new = item.image_ids[0], (*item.image_ids, "")[1]
        made = self.record(target, action, new)
        self.place = self._find_open(self.place)
        return made

    def record(self, image_id: str, action: str, new: str = "") -> decisions.Decision:
        """Append a verdict on any picture.

        Raises:
            ValueError: an unknown picture or class, or a verdict that has no effect.
        """
        decisions.check_action(action)
        if action == "undo":
            return self.undo(image_id)
        self._check(image_id, action, new)
        old = self.verdicts.labels.get(image_id, self.names[image_id])
        one = decisions.Decision(image_id, action, old, new, self.by)
        made = decisions.append(self.path, one)
        self.refresh()
        return made

    def _check(self, image_id: str, action: str, new: str) -> None:
        if image_id not in self.names:
            near = parameters.suggest(image_id, self.names)
            raise ValueError(f"no picture is called {image_id!r}{near}")
        if action in ("drop", "relabel") and self.subsets[image_id] == "test":
            raise ValueError(
                f"{image_id} is a test picture: the submission holds every one, and "
                "its class is what is asked; it cannot be dropped or relabelled"
            )
        if action == "relabel" and new not in self.classes:
            near = parameters.suggest(new, self.classes)
            raise ValueError(f"a relabel needs one of your classes, not {new!r}{near}")
        if action == "not_duplicate" and new not in self.names:
            raise ValueError(
                f"not_duplicate needs the other picture of the pair, not {new!r}"
            )

    def undo(self, image_id: str = "") -> decisions.Decision:
        """Take back the last verdict that stands (on `image_id`), by one more line.

        Raises:
            ValueError: nothing stands.
        """
        self.refresh()
        found = [one for one in self.verdicts.standing if image_id in ("", one.id)]
        if not found:
            raise ValueError("there is no verdict to undo")
        last = found[-1]
        undo = decisions.Decision(last.id, "undo", last.action, last.new, self.by)
        made = decisions.append(self.path, undo)
        self.refresh()
        about = [last.id, *([last.new] if last.pair else [])]
        for place, item in enumerate(self.items):
            if set(about) <= set(item.image_ids) and self.is_open(item):
                self.place = place
                break
        return made


def _read_suspects(run_dir: Path) -> pd.DataFrame | None:
    """Doubted labels: the newest list 04_evaluate wrote of this audit, then its own."""
    found = []
    lists = run_dir.parent.glob("*/label_suspects.csv")
    for path in sorted(lists, key=lambda one: -one.stat().st_mtime):
        asked = workspace.read_json(path.parent / "run.json").get("parameters", {})
        if asked.get("audit_run") == run_dir.name:
            table = pd.read_csv(path, keep_default_na=False)
            table = table.rename(columns={"suggested": "suggestion"})
            found.append(table.assign(suspicion=1 - table["score"], source="model"))
            break  # trained models know more than yesterday's did
    own = run_dir / "suspects.csv"
    if own.exists():
        table = pd.read_csv(own, keep_default_na=False)
        if "source" not in table:  # of an audit from before folders were asked
            table["source"] = "neighbours"
        found.append(table)
    if not found:
        return None
    return pd.concat(found, ignore_index=True).drop_duplicates("image_id")


def open_desk(
    run_dir: Path, data_dir: Path, manifest: pd.DataFrame, *, by: str = ""
) -> Desk:
    """The review of what an audit run found.

    Raises:
        FileNotFoundError: the run holds no audit.
    """
    if not (run_dir / "pairs.csv").exists():
        raise FileNotFoundError(
            f"`pairs.csv` was expected in {run_dir}; run 01_eda first (`sketch run "
            f"01_eda -p run_name {run_dir.name}`)"
        )
    pairs, copies, findings = (
        pd.read_csv(run_dir / f"{name}.csv", keep_default_na=False, na_values=["nan"])
        for name in ("pairs", "groups", "findings")
    )
    suspects = _read_suspects(run_dir)
    asked = workspace.read_json(run_dir / "run.json")["parameters"]
    queue = make_queue(
        pairs, copies, findings, manifest,
        threshold=float(asked.get("likeness", 1.0)), suspects=suspects,
    )  # fmt: skip
    known = set(manifest["image_id"])
    queue = [item for item in queue if known.issuperset(item.image_ids)]
    return Desk(queue, manifest, data_dir, decisions.find_path(data_dir), by)


# --- what is shown ------------------------------------------------------------------


def show(desk: Desk, *, shown: int) -> Any:
    """The widget for a person at the kernel, the gallery for a log or a report.

    Args:
        desk: the review.
        shown: questions in the gallery.
    Returns:
        Something to display.
    """
    if session.is_interactive():
        from sketchlib.workbook import review_widget

        return review_widget.ReviewWidget(desk)
    from IPython.display import HTML

    return HTML(make_gallery(desk, shown=shown))


def make_gallery(desk: Desk, *, shown: int) -> str:
    """The first open questions as plain HTML: no script, no kernel, no other file."""
    left = desk.open_items
    notices = "".join(f"<p>{html.escape(one)}</p>" for one in desk.verdicts.notices)
    told = (
        f"<p>This is a still picture of the review, {desk.progress}. To answer, open "
        "<code>01_eda</code> in JupyterLab (<code>make lab</code>) and run it, or use "
        "<code>sketch review</code> in a terminal.</p>"
    )
    more = len(left) - shown
    rest = f"<p>{more:,} more are in the queue.</p>" if more > 0 else ""
    cards = "".join(_make_card(desk, item) for item in left[:shown])
    grid = '<div style="display:flex;flex-wrap:wrap;gap:14px">'
    return f"{told}{notices}{grid}{cards}</div>{rest}"


def _make_card(desk: Desk, item: Item) -> str:
    """One question: its pictures side by side, their names under them."""
    tiles = "".join(_make_tile(desk, one) for one in item.image_ids)
    title = html.escape(describe(item))
    return (
        f'<figure style="margin:0"><figcaption style="color:#bf3f24;font-size:12px">'
        f'{title}</figcaption><div style="display:flex;gap:4px">{tiles}</div></figure>'
    )


def _make_tile(desk: Desk, image_id: str) -> str:
    source = as_data_uri(samples.read_small(desk.data_dir, image_id), _TILE_PX)
    name = html.escape(desk.names[image_id] or "test picture")
    return (
        f'<div style="width:{_TILE_PX}px;font-size:11px;line-height:1.25;'
        f'overflow-wrap:anywhere"><img src="{source}" alt="{html.escape(image_id)}" '
        f'style="width:{_TILE_PX}px;height:{_TILE_PX}px;object-fit:contain;'
        f'border:1px solid #dfe2e6;background:#fff;display:block"><b>{name}</b><br>'
        f'<span style="color:#7d848c">{html.escape(image_id)}</span></div>'
    )


def describe(item: Item) -> str:
    """`conflict · near, hflip · 0.98`."""
    parts = [item.kind, item.why]
    if item.score == item.score:  # not NaN
        parts.append(f"{item.score:.3f}")
    return " · ".join(parts)


def read_picture(data_dir: Path, image_id: str) -> np.ndarray:
    """A picture to judge, its longer side at most 320 px; white where unreadable."""
    try:
        path = images.picture_path(data_dir, image_id)
        return images.read_picture(path, "colour")
    except images.PictureError:
        return np.full((_SEEN_PX, _SEEN_PX, 3), 255, np.uint8)


def as_data_uri(picture: np.ndarray, side_px: int = _SEEN_PX) -> str:
    """The picture, no larger than `side_px`, as a JPEG in a `data:` address."""
    scale = min(1.0, side_px / max(picture.shape[:2]))
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
