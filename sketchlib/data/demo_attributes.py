"""A second demo: drawings whose label is subject × ground × line, by several authors.

The icons of `demo_icons`, redrawn in lines: every drawing three times, once in thin
and once in bold lines on white, and once on a dark ground, which makes dark classes
the rarer half. An author's drawings resemble each other as pictures of one person do,
so the column `author` is there to keep them on one side of a split. What was not
planted is not here: no copies, no wrong labels. Limits: as `demo`.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from sketchlib import workspace
from sketchlib.data import demo, demo_drawing, demo_icons
from sketchlib.data.manifest import MADE_OF

VERSION = 1  # of the pictures: raise it when any byte of them changes
SUBJECTS = ("bell", "bicycle", "cloud", "house", "key", "tree")
NAMES = ("subject", "ground", "line")
_WIDTHS_PX = {"thin": 5, "bold": 19}
_GROUNDS = {"light": "white", "dark": "inverted"}
_README = """\
# Demo data of Sketchbook with composite labels

Written by `sketch demo --attributes`: a class is a row of subject, ground and line,
`author` is who made the icon. The drawings are icons of the sets named in SOURCES.csv,
under the licences named there, changed by Sketchbook: outlined, tilted, distorted,
given grain and ground.
"""


@dataclasses.dataclass(frozen=True)
class Sheet:
    """One file to be: a drawing in one style."""

    drawing: str  # pack:name
    subject: str
    ground: str  # light or dark
    line: str  # thin or bold
    subset: str  # train or test
    image_path: str = ""

    @property
    def class_name(self) -> str:
        """The row of values that makes its class."""
        return MADE_OF.join((self.subject, self.ground, self.line))

    @property
    def author(self) -> str:
        """Who made the icon; sets of one maker are one author."""
        pack = self.drawing.partition(":")[0]
        return demo_icons.PACKS[pack].maker or pack


def write_demo(
    data_dir: Path,
    *,
    seed: int,
    progress: bool = False,
    subjects: Sequence[str] = SUBJECTS,
) -> Path:
    """Write the data set, whole or not at all; a folder that holds it is left.

    `train.csv` has the columns class_name, image_path, target, subject, ground, line
    and author; the test pictures' labels are not written.

    Args:
        data_dir: must be missing, empty or this demo.
        seed: at least 0.
        progress: show a bar on stderr.
        subjects: names out of `demo_icons.read_classes`.
    Raises:
        FileExistsError: the folder holds something else.
        ModuleNotFoundError: the extra `demo` is not installed.
    """
    data_dir = Path(os.path.abspath(data_dir))
    marker = {"kind": "attributes", "version": VERSION, "seed": seed}
    marker |= {"classes": list(subjects)}
    if demo.is_done(data_dir, marker):
        return data_dir
    demo_icons.check_packs()
    sheets = plan_sheets(seed, subjects)
    with demo.whole_folder(data_dir) as folder:
        _write_tables(folder, sheets, seed)
        for each in tqdm(sheets, desc="drawing", disable=not progress):
            target = folder / each.subset / each.image_path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_draw_jpeg(each, seed))
        workspace.write_json(folder / demo.MARKER, marker | {"pictures": len(sheets)})
    return data_dir


def plan_sheets(seed: int, subjects: Sequence[str]) -> list[Sheet]:
    """Decide every picture, train first; designs are on one side of the split.

    Args:
        seed: at least 0.
        subjects: names out of `demo_icons.read_classes`.
    """
    planned: list[Sheet] = []
    for subject in subjects:
        rng = demo.make_rng(seed, "attributes", subject)
        for one in demo.split_class(subject, rng):
            dark = str(rng.choice(list(_WIDTHS_PX)))
            styles = [("light", "thin"), ("light", "bold"), ("dark", dark)]
            planned += [
                Sheet(one.drawing, subject, *style, one.subset) for style in styles
            ]
    rng = demo.make_rng(seed, "attributes", "names")
    shuffled = [planned[at] for at in rng.permutation(len(planned))]
    parts = [[one for one in shuffled if one.subset == s] for s in ("train", "test")]
    return [
        dataclasses.replace(one, image_path=f"{number}.JPEG")
        for part in parts
        for number, one in enumerate(part)
    ]


def _write_tables(folder: Path, sheets: Sequence[Sheet], seed: int) -> None:
    train = [one for one in sheets if one.subset == "train"]
    test = [one for one in sheets if one.subset == "test"]
    names = sorted({one.class_name for one in train})
    rows = [
        (one.class_name, one.image_path, names.index(one.class_name), one.subject,
         one.ground, one.line, one.author)
        for one in train
    ]  # fmt: skip
    columns = ["class_name", "image_path", "target", *NAMES, "author"]
    demo.write_csv(folder / "train.csv", columns, rows)
    demo.write_csv(folder / "test.csv", ["image_path"], [(t.image_path,) for t in test])
    guesses = demo.make_rng(seed, "guesses").integers(len(names), size=len(test))
    numbered = zip(range(len(test)), [t.image_path for t in test], guesses, strict=True)
    sample = ["ID", "image_path", "target"]
    demo.write_csv(folder / "sample_submission.csv", sample, list(numbered))
    sources = sorted({_source(one) for one in sheets})
    kinds = ["set", "name", "author", "licence"]
    demo.write_csv(folder / "SOURCES.csv", kinds, sources)
    workspace.write_text(folder / "README.md", _README)


def _source(sheet: Sheet) -> tuple[str, str, str, str]:
    name_of_set, _, name = sheet.drawing.partition(":")
    pack = demo_icons.PACKS[name_of_set]
    return (name_of_set, name, pack.author, pack.licence)


def _draw_jpeg(sheet: Sheet, seed: int) -> bytes:
    rng = demo.make_rng(seed, sheet.drawing, sheet.ground, sheet.line)
    look = demo_drawing.Look(_GROUNDS[sheet.ground], False, "")
    ink = demo_icons.read_ink(sheet.drawing)
    drawn = demo_drawing.draw_lines(ink, look, _WIDTHS_PX[sheet.line], rng)
    return demo_drawing.encode_jpeg(drawn, int(rng.integers(70, 96)))
