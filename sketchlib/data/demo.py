"""The embedded demo data set: icons redrawn as sketches, in the competition's layout.

Icons by third-party designers (`demo_icons`, `demo_classes.yaml`) become hand-like
sketches (`demo_drawing`); what real data has is planted: copies, some across train
and test, wrong labels, a truncated file, a blank one. What was planted is written to
a folder of its own, which no notebook reads. Sources: SOURCES.csv in the data folder.
Limits: icons are cleaner and easier than the competition's sketches; scores on them
say that the machinery works, not how good a model is.
"""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from sketchlib import workspace
from sketchlib.data import demo_drawing, demo_icons

VERSION = 1  # of the pictures: raise it when any byte of them changes
MARKER = "demo.json"
# Three copies a class are dealt from this list; flips are what the real data has most.
_DEALT = (
    *("exact", "hflip", "resized", "hflip", "vflip", "recompressed", "exact"),
    *("rot180", "cropped", "hflip", "text", "rot90", "rotated"),
)
_README = """\
# Demo data of Sketchbook

Written by `sketch demo` in the competition's layout. The drawings are icons of the
sets named in SOURCES.csv, under the licences named there, changed by Sketchbook:
tilted, distorted, shaded, given grain, paper and marks; some copied or mislabelled.
"""


@dataclasses.dataclass(eq=False)
class Picture:
    """One file to be: what it shows, what it is called, what was done to it."""

    drawing: str  # pack:name; "" for the blank page
    class_name: str  # what it shows
    given: str  # the class it is filed under
    subset: str  # train or test
    kind: str = "drawing"  # or one of demo_drawing.COPY_KINDS, corrupt, blank
    original: "Picture | None" = None
    image_id: str = ""

    @property
    def image_path(self) -> str:
        """The path inside the image folder of its subset, as the CSV has it."""
        return self.image_id.partition("/")[2]


def write_demo(
    data_dir: Path,
    truth_dir: Path,
    *,
    seed: int,
    progress: bool = False,
    classes: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Write the demo data set and what is planted in it, each folder whole or not.

    The same version, seed and classes give the same bytes. A folder that already
    holds exactly this demo is left as it is; nothing else is ever replaced.

    Args:
        data_dir: becomes the data set; must be missing, empty or this demo.
        truth_dir: becomes copies.csv, labels.csv, test.csv, oddities.csv and
            drawings.csv; on the same terms, and outside `data_dir`.
        seed: at least 0.
        progress: show a bar on stderr.
        classes: a selection, for tests; None for all.
    Returns:
        One row per drawing used: set, name, author, licence.
    Raises:
        FileExistsError: a folder holds something else.
        ModuleNotFoundError: the extra `demo` is not installed.
        ValueError: an unknown class, or one folder inside the other.
    """
    data_dir, truth_dir = Path(data_dir).resolve(), Path(truth_dir).resolve()
    names = _check_classes(classes)
    marker = {"version": VERSION, "seed": seed, "classes": names}
    _check_apart(data_dir, truth_dir)
    data_done, truth_done = is_done(data_dir, marker), is_done(truth_dir, marker)
    if not (data_done and truth_done):
        demo_icons.check_packs()
        pictures = plan_pictures(seed, names)
    if not truth_done:
        with whole_folder(truth_dir) as folder:
            _write_truth(folder, pictures, seed)
            workspace.write_json(folder / MARKER, marker | {"pictures": 0})
    if not data_done:
        with whole_folder(data_dir) as folder:
            _write_tables(folder, pictures, seed)
            _write_images(folder, pictures, seed, progress)
            workspace.write_json(folder / MARKER, marker | {"pictures": len(pictures)})
    return pd.read_csv(data_dir / "SOURCES.csv")


# --- checks -----------------------------------------------------------------


def _check_classes(classes: Sequence[str] | None) -> list[str]:
    known = demo_icons.read_classes()
    chosen = sorted(set(known if classes is None else classes))
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(
            f"`classes` must name classes of the demo, but {unknown or 'none'} came; "
            f"there are {', '.join(known)}"
        )
    return chosen


def _check_apart(data_dir: Path, truth_dir: Path) -> None:
    if data_dir.is_relative_to(truth_dir) or truth_dir.is_relative_to(data_dir):
        raise ValueError(
            f"`data_dir` and `truth_dir` must be apart, but {data_dir} and {truth_dir} "
            "came; keep the truth beside the data, where no notebook reads it"
        )


def is_done(folder: Path, marker: dict[str, Any]) -> bool:
    """Whether `folder` holds this demo; False when it is free.

    Raises FileExistsError when it holds anything else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    found = _read_marker(folder)
    pictures = sum(1 for _ in folder.glob("t*/**/*.JPEG")) if found else 0
    if found == marker | {"pictures": pictures}:
        return True
    what = (
        f"version {found.get('version')}, seed {found.get('seed')} of the demo with "
        f"{pictures} of {found.get('pictures')} pictures"
        if found
        else "something else"
    )
    raise FileExistsError(
        f"`{folder}` should be free for the demo (version {marker['version']}, seed "
        f"{marker['seed']}, {len(marker['classes'])} classes), but it holds {what}; "
        "nothing was changed: give another folder, or move that one away"
    )


def _read_marker(folder: Path) -> dict[str, Any]:
    """What `demo.json` says; {} where there is none of ours."""
    if not (folder / MARKER).is_file():
        return {}
    with contextlib.suppress(ValueError):
        found = workspace.read_json(folder / MARKER)
        return found if isinstance(found, dict) else {}
    return {}


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A hidden sibling that becomes `target` when the block succeeds.

    What a killed run left there is removed when it is older than an hour.
    """
    for left in target.parent.glob(f".{target.name}-????????.part"):
        if time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}.part")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            target.rmdir()  # empty, or somebody else was faster and this raises
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- the plan ---------------------------------------------------------------


def plan_pictures(seed: int, classes: Sequence[str]) -> list[Picture]:
    """Decide every picture of the demo: split, copies, wrong labels, names.

    Pure and quick; which drawings a class trains on does not depend on the other
    classes chosen.

    Args:
        seed: at least 0.
        classes: sorted names out of `demo_icons.read_classes`.
    Returns:
        All pictures, in the order of `train.csv` and then of `test.csv`.
    """
    pictures = []
    positions = {name: at for at, name in enumerate(demo_icons.read_classes())}
    for name in classes:
        rng = make_rng(seed, name)
        own = split_class(name, rng)
        copies = _make_copies(own, positions[name], rng)
        pictures += own + copies
        untouched = _untouched(own, copies)
        others = [other for other in classes if other != name]
        if others:
            pictures += _mislabel(untouched, others, positions[name], rng)
    _untouched(pictures, pictures)[0].kind = "corrupt"
    last = classes[-1]
    pictures.append(Picture("", last, last, "train", "blank"))
    return _name_pictures(pictures, make_rng(seed, "names"))


def make_rng(seed: int, *keys: str) -> np.random.Generator:
    """A generator of its own for each picture, so that order does not matter."""
    return np.random.default_rng([seed, *(zlib.crc32(key.encode()) for key in keys)])


def split_class(name: str, rng: np.random.Generator) -> list[Picture]:
    """A third of the drawings for the test; versions of one design stay together."""
    families: dict[str, list[str]] = {}
    for drawing in demo_icons.read_classes()[name]:
        families.setdefault(demo_icons.family_of(drawing), []).append(drawing)
    wanted = round(sum(map(len, families.values())) / 3)
    pictures: list[Picture] = []
    designs = list(families.values())
    for at in rng.permutation(len(designs)):
        fits = len(designs[at]) <= wanted
        wanted -= len(designs[at]) if fits else 0
        subset = "test" if fits else "train"
        pictures += [Picture(each, name, name, subset) for each in designs[at]]
    return pictures


def _make_copies(
    own: list[Picture], position: int, rng: np.random.Generator
) -> list[Picture]:
    """Three copies; the second, and each third class's last, cross the split."""
    copies = []
    for at, chosen in enumerate(rng.choice(len(own), 3, replace=False)):
        original = own[chosen]
        crosses = at == 1 or (at == 2 and position % 3 == 0)
        other = {"train": "test", "test": "train"}[original.subset]
        subset = other if crosses else original.subset
        kind = _DEALT[(3 * position + at) % len(_DEALT)]
        copies.append(_copy(original, kind, original.given, subset))
    return copies


def _copy(original: Picture, kind: str, given: str, subset: str) -> Picture:
    return Picture(original.drawing, original.class_name, given, subset, kind, original)


def _untouched(own: list[Picture], copies: list[Picture]) -> list[Picture]:
    """Rightly labelled training drawings that no copy was made of."""
    copied = {picture.drawing for picture in copies if picture.original}
    return [
        picture
        for picture in own
        if picture.subset == "train"
        and picture.drawing not in copied
        and picture.given == picture.class_name
    ]


def _mislabel(
    own: list[Picture], others: list[str], position: int, rng: np.random.Generator
) -> list[Picture]:
    """File one drawing of each fourth class wrongly; contradict one of each seventh.

    Returns the contradictions: copies filed under another class.
    """
    wrong, doubted = rng.choice(len(own), 2, replace=False)
    first, second = rng.choice(others, 2)
    if position % 4 == 1:
        own[wrong].given = str(first)
    if position % 7 == 3:
        kind = "exact" if position % 2 else "hflip"
        return [_copy(own[doubted], kind, str(second), "train")]
    return []


def _name_pictures(pictures: list[Picture], rng: np.random.Generator) -> list[Picture]:
    """Number the pictures of each class together: the gaps in train are in test."""
    shuffled = [pictures[at] for at in rng.permutation(len(pictures))]
    seen: dict[str, int] = {}
    for picture in shuffled:
        number = seen.get(picture.given, 0)
        seen[picture.given] = number + 1
        picture.image_id = f"train/{picture.given}/sketch_{number}.JPEG"
    train = [picture for picture in shuffled if picture.subset == "train"]
    train = [train[at] for at in rng.permutation(len(train))]
    test = [picture for picture in shuffled if picture.subset == "test"]
    for number, picture in enumerate(test):
        picture.image_id = f"test/{number}.JPEG"
    return train + test


# --- tables -----------------------------------------------------------------


def _write_tables(folder: Path, pictures: list[Picture], seed: int) -> None:
    """The competition's three tables, the sources and a README."""
    targets = _targets(pictures)
    train = [
        (each.given, each.image_path, targets[each.given])
        for each in pictures
        if each.subset == "train"
    ]
    test = [each.image_path for each in pictures if each.subset == "test"]
    write_csv(folder / "train.csv", ["class_name", "image_path", "target"], train)
    write_csv(folder / "test.csv", ["image_path"], [(path,) for path in test])
    guesses = make_rng(seed, "guesses").integers(len(targets), size=len(test))
    write_csv(
        folder / "sample_submission.csv",
        ["ID", "image_path", "target"],
        list(zip(range(len(test)), test, guesses, strict=True)),
    )
    sources = sorted({_source(each) for each in pictures})
    write_csv(folder / "SOURCES.csv", ["set", "name", "author", "licence"], sources)
    workspace.write_text(folder / "README.md", _README)


def _write_truth(folder: Path, pictures: list[Picture], seed: int) -> None:
    """What was planted where, by `image_id`."""
    targets = _targets(pictures)
    copies = [
        (each.original.image_id, each.image_id, each.kind)
        for each in pictures
        if each.original
    ]
    labels = [
        (each.image_id, each.given, each.class_name)
        for each in pictures
        if each.given != each.class_name
    ]
    test = [
        (each.image_id, each.class_name, targets[each.class_name])
        for each in pictures
        if each.subset == "test"
    ]
    odd = [(p.image_id, kind) for p in pictures for kind in _oddities(p, seed)]
    drawings = [(each.image_id, *_source(each)[:2]) for each in pictures]
    kinds = ["image_id_a", "image_id_b", "kind"]
    write_csv(folder / "copies.csv", kinds, copies)
    write_csv(folder / "labels.csv", ["image_id", "given", "true"], labels)
    write_csv(folder / "test.csv", ["image_id", "class_name", "target"], test)
    write_csv(folder / "oddities.csv", ["image_id", "kind"], odd)
    write_csv(folder / "drawings.csv", ["image_id", "set", "name"], drawings)


def write_csv(path: Path, columns: list[str], rows: Sequence[tuple]) -> None:
    """Write rows as a CSV with these columns, the same bytes on every machine."""
    table = pd.DataFrame.from_records(rows, columns=columns)
    workspace.write_text(path, table.to_csv(index=False, lineterminator="\n"))


def _targets(pictures: list[Picture]) -> dict[str, int]:
    names = sorted({picture.class_name for picture in pictures})
    return {name: target for target, name in enumerate(names)}


def _source(picture: Picture) -> tuple[str, str, str, str]:
    """Set, name, author and licence of what the picture shows."""
    if picture.kind == "blank":
        return ("sketchbook", "blank", "Sketchbook", "MIT")
    name_of_set, _, name = picture.drawing.partition(":")
    pack = demo_icons.PACKS[name_of_set]
    return (name_of_set, name, pack.author, pack.licence)


def _oddities(picture: Picture, seed: int) -> tuple[str, ...]:
    if picture.kind in ("corrupt", "blank"):
        return (picture.kind,)
    look = demo_drawing.choose_look(make_rng(seed, picture.drawing))
    marked = picture.kind == "text" and not look.text
    return look.oddities + (("text",) if marked else ())


# --- images -----------------------------------------------------------------


def _write_images(
    folder: Path, pictures: list[Picture], seed: int, progress: bool
) -> None:
    """Draw every picture once and its copies from it, on all cores when many."""
    for parent in {(folder / each.image_id).parent for each in pictures}:
        parent.mkdir(parents=True, exist_ok=True)
    copies: dict[Picture, list[Picture]] = {
        each: [] for each in pictures if each.original is None
    }
    for each in pictures:
        if each.original is not None:
            copies[each.original].append(each)
    jobs = [(folder, seed, first, rest) for first, rest in copies.items()]
    bar = tqdm(total=len(jobs), desc="drawing", disable=not progress)
    with bar, _open_pool(len(jobs)) as pool:
        for _ in pool.map(_draw_files, jobs, chunksize=8):
            bar.update()


def _open_pool(jobs: int) -> concurrent.futures.Executor:
    """Processes (rendering holds the GIL); one thread where starting them costs more.

    Spawned, not forked: the caller may have torch's or Jupyter's threads running.
    """
    workers = min(os.cpu_count() or 1, 4)
    if workers == 1 or jobs < 150:
        return concurrent.futures.ThreadPoolExecutor(1)
    return concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=cv2.setNumThreads,
        initargs=(1,),
    )


def _draw_files(job: tuple[Path, int, Picture, list[Picture]]) -> None:
    """Write one drawing and all its copies."""
    folder, seed, first, rest = job
    data = _draw_jpeg(first, seed)
    (folder / first.image_id).write_bytes(data)
    for each in rest:
        rng = make_rng(seed, each.drawing, each.kind)
        copied = demo_drawing.copy_jpeg(data, each.kind, rng)
        (folder / each.image_id).write_bytes(copied)


def _draw_jpeg(picture: Picture, seed: int) -> bytes:
    if picture.kind == "blank":
        return demo_drawing.encode_jpeg(np.full((240, 300), 255, np.uint8), 90)
    rng = make_rng(seed, picture.drawing)
    look = demo_drawing.choose_look(rng)
    ink = demo_icons.read_ink(picture.drawing)
    sketch = demo_drawing.draw_sketch(ink, look, rng)
    data = demo_drawing.encode_jpeg(sketch, int(rng.integers(70, 96)))
    return data[: len(data) * 3 // 5] if picture.kind == "corrupt" else data
