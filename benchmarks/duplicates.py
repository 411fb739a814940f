"""Audit and duplicates on planted copies: recall and precision per kind, seconds.

Run: python benchmarks/duplicates.py [FOLDER] [--pictures N ...] [--peers ENV]
FOLDER holds pictures of your own (only read; searched in depth) that are brought to
300-800 px; without it the drawings are drawn here. Copies of known kinds are planted
in a temporary folder. The yardstick, in the same run: decoding every file once with
OpenCV, a thread per core. Pairs of two different originals are counted apart: among
drawn ones they are mistakes, in a folder of one's own they may be true copies.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import pandas as pd
import psutil
from table import limit_row, plain_row, ratio_row, write_rows

from sketchlib.data import (
    audit,
    cache,
    duplicates,
    groups,
    images,
    manifest,
    passes,
    spectra,
)

Alter = Callable[[np.ndarray, np.random.Generator], np.ndarray]
SHEET = cache.Geometry(96, "ink", "grey", "white")  # filled in the audit's pass
STEPS = ("audit", "pairs", "groups")  # of what decoding is the yardstick
TURNS = ("hflip", "vflip", "rot90", "rot180", "rot270", "transpose", "transverse")


def draw_sketch(rng: np.random.Generator, side_px: int) -> np.ndarray:
    """A random line drawing on white, (S, S) uint8: closed shapes, strokes, dots."""
    paper = np.full((side_px, side_px), 255, np.uint8)
    width = int(rng.integers(1, 4)) * max(1, side_px // 200)
    grey = int(rng.integers(0, 60))
    for _ in range(int(rng.integers(3, 7))):
        points = rng.uniform(0.12, 0.88, (int(rng.integers(3, 8)), 2)) * side_px
        closed = bool(rng.random() < 0.5)
        curve = _smooth(points, closed) if rng.random() < 0.6 else points
        cv2.polylines(
            paper, [curve.round().astype(np.int32)], closed, grey, width, cv2.LINE_AA
        )
    if rng.random() < 0.5:
        centre = rng.uniform(0.3, 0.7, 2) * side_px
        radius = int(rng.uniform(0.04, 0.15) * side_px)
        cv2.circle(paper, centre.astype(int).tolist(), radius, grey, -1, cv2.LINE_AA)
    return paper


def _smooth(points: np.ndarray, closed: bool) -> np.ndarray:
    """(M, 2) points of a Catmull-Rom curve through `points`."""
    padded = np.concatenate([points[-1:], points, points[:2]])
    if not closed:
        padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    a, b, c, d = (padded[k : len(padded) - 3 + k] for k in range(4))
    parts = [
        0.5
        * (
            2 * q
            + (r - p) * t
            + (2 * p - 5 * q + 4 * r - s) * t**2
            + (3 * q - p - 3 * r + s) * t**3
        )
        for p, q, r, s in zip(a, b, c, d, strict=True)
    ]
    return np.concatenate(parts)


def turn(pixels: np.ndarray, name: str) -> np.ndarray:
    """`pixels` in one of the eight orientations, as `duplicates` names them."""
    return np.ascontiguousarray(duplicates.turn(pixels, name))


def rotate(pixels: np.ndarray, angle_deg: float) -> np.ndarray:
    """Rotated about the centre, corners filled with the paper."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle_deg, 1.0)
    return cv2.warpAffine(
        pixels,
        matrix,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=paper_of(pixels),
    )


def paper_of(pixels: np.ndarray) -> tuple[float, ...]:
    """Median colour of the outermost pixels."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.atleast_1d(np.median(edge, axis=0)).tolist())


def _crop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    y, x = rng.uniform(0, 0.1, 2)
    top, left = int(y * height), int(x * width)
    return pixels[top : top + int(0.9 * height), left : left + int(0.9 * width)]


def _margin(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    wide = [int(rng.uniform(0.05, 0.3) * side) for side in pixels.shape[:2] * 2]
    return cv2.copyMakeBorder(
        pixels, *wide, cv2.BORDER_CONSTANT, value=paper_of(pixels)
    )


def _text(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    marked = pixels.copy()
    height, width = pixels.shape[:2]
    words = str(rng.choice(["stock 0712", "(c) sketches", "SAMPLE", "www.draw.ex"]))
    at = (int(rng.uniform(0.02, 0.4) * width), int(rng.uniform(0.9, 0.97) * height))
    ink = tuple(255 - v if v < 128 else 60.0 for v in paper_of(pixels))
    cv2.putText(marked, words, at, 0, width / 500, ink, 1 + width // 400, cv2.LINE_AA)
    return marked


def _weight(pixels: np.ndarray, thicker: bool) -> np.ndarray:
    """Lines wider or narrower by about a third, judged by the ink they keep."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    dark_ink = np.mean(paper_of(pixels)) > 127
    grow = cv2.erode if thicker == dark_ink else cv2.dilate
    height, width = pixels.shape[:2]
    changed = pixels
    for finer in (0.67, 1, 2, 3, 4):  # the kernel in ever smaller pixels
        size = (round(width * finer), round(height * finer))
        large = grow(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), kernel)
        changed = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
        if 0.7 < _ink(changed) / max(_ink(pixels), 1.0) < 1.45:
            break
    return changed


def _ink(pixels: np.ndarray) -> float:
    return float(np.abs(pixels - np.float32(paper_of(pixels))).sum())


def _brightness(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.convertScaleAbs(
        pixels, alpha=rng.uniform(0.55, 0.85), beta=rng.uniform(0, 30)
    )


def _resize(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0.4, 0.8) if rng.random() < 0.7 else rng.uniform(1.2, 1.6)
    return cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _angle(low: float, high: float) -> Alter:
    def alter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rotate(pixels, rng.choice([-1, 1]) * rng.uniform(low, high))

    return alter


def _turned(name: str) -> Alter:
    return lambda pixels, rng: turn(pixels, name)


def _turned_rotated(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rotate(turn(pixels, "hflip"), rng.uniform(-5, 5))


# kind → how the copy is made; bytes, pixels and recompressed differ in the file only
ALTERATIONS: dict[str, Alter] = {
    "bytes": lambda pixels, rng: pixels,
    "pixels": lambda pixels, rng: pixels,
    "recompressed": lambda pixels, rng: pixels,
    **{name: _turned(name) for name in TURNS},
    "rotated 4-6": _angle(4, 6),
    "rotated 7-10": _angle(7, 10),
    "rotated 11-15": _angle(11, 15),
    "flip + rotated": _turned_rotated,
    "crop": _crop,
    "margin": _margin,
    "brightness": _brightness,
    "resize": _resize,
    "text": _text,
    "thicker": lambda pixels, rng: _weight(pixels, True),
    "thinner": lambda pixels, rng: _weight(pixels, False),
    "inverted": lambda pixels, rng: 255 - pixels,
}


def plant(
    folder: Path, sources: Iterable[np.ndarray], share: float, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write `sources` and `share` altered copies of each below `folder`.

    Returns:
        The manifest, and the truth: `image_id_a, image_id_b, planted` (a the original).
    """
    rng = np.random.default_rng(seed)
    (folder / "train").mkdir(parents=True)
    with passes.one_thread_each(0) as pool:
        names = _write_all(folder, sources, pool)
        copies, rounds = round(share * len(names)), int(np.ceil(share))
        chosen = np.concatenate([rng.permutation(len(names)) for _ in range(rounds)])
        kinds = list(ALTERATIONS)
        asked = [
            (number, names[at], kinds[number % len(kinds)])
            for number, at in enumerate(chosen[:copies])
        ]
        made = list(pool.map(lambda one: _write_copy(folder, one, seed), asked))
    names += made
    truth = [(a, b, kind) for (_, a, kind), b in zip(asked, made, strict=True)]
    table = pd.DataFrame({"image_id": names, "path": names})
    table["label"], table["class_name"], table["subset"] = 0, "drawing", "train"
    return table, pd.DataFrame(truth, columns=["image_id_a", "image_id_b", "planted"])


def _write_all(
    folder: Path, sources: Iterable[np.ndarray], pool: ThreadPoolExecutor
) -> list[str]:
    """Names of the originals; a few are drawn ahead of the writing."""
    names: list[str] = []
    pending: deque[Future] = deque()
    for number, pixels in enumerate(sources):
        names.append(f"train/{number:06d}.jpg")
        path, quality = str(folder / names[-1]), [cv2.IMWRITE_JPEG_QUALITY, 90]
        pending.append(pool.submit(cv2.imwrite, path, pixels, quality))
        if len(pending) > 32:
            pending.popleft().result()
    for one in pending:
        one.result()
    return names


def _write_copy(folder: Path, asked: tuple[int, str, str], seed: int) -> str:
    """The name of a copy, written; `asked`: its number, the original, the kind."""
    number, original, kind = asked
    rng = np.random.default_rng([seed, number])
    data = (folder / original).read_bytes()
    name = original.replace(".jpg", f"-{kind.replace(' ', '')}-{number}.jpg")
    if kind == "bytes":
        (folder / name).write_bytes(data)
        return name
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    altered = np.ascontiguousarray(ALTERATIONS[kind](pixels, rng))
    if kind == "pixels":
        name = name.replace(".jpg", ".png")
        cv2.imwrite(str(folder / name), altered)
        return name
    quality = 30 if kind == "recompressed" else int(rng.integers(75, 95))
    cv2.imwrite(str(folder / name), altered, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return name


def source_of(image_id: str) -> str:
    """The original's number, which a copy's name starts with."""
    return Path(image_id).name[:6]


def score_kinds(pairs: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """By planted kind: how many, share found, share of those named right."""
    found = {}
    for a, b, kind, _ in pairs.itertuples(index=False):
        found[a, b], found[b, a] = kind, duplicates.inverse_kind(kind)
    table = truth.copy()
    kinds = [
        found.get(pair) for pair in zip(truth.image_id_a, truth.image_id_b, strict=True)
    ]
    table["found"] = [kind is not None for kind in kinds]
    expected = truth["planted"].where(truth["planted"].isin(duplicates.KINDS), "near")
    expected = expected.mask(truth["planted"] == "flip + rotated", "hflip")
    right = [k == e for k, e in zip(kinds, expected, strict=True)]
    table["named"] = pd.Series(right, index=table.index).where(table["found"])
    by_kind = table.groupby("planted")
    return pd.DataFrame(
        {
            "planted": by_kind.size(),
            "recall": by_kind["found"].mean(),
            "named": by_kind["named"].apply(lambda part: part.dropna().mean()),
        }
    )


def read_sources(folder: Path, pictures: int, seed: int) -> Iterator[np.ndarray]:
    """Up to `pictures` readable pictures of `folder`, longer side 300-800 px."""
    rng = np.random.default_rng(seed)
    found = 0
    for path in sorted(folder.rglob("*")):
        if found == pictures:
            break
        if path.suffix.lower() not in manifest.PICTURE_SUFFIXES:
            continue
        try:
            pixels = images.read_picture(path, "colour")[:, :, ::-1]
        except images.PictureError:
            continue  # the benchmark wants pictures; the audit lists such files
        scale = rng.uniform(300, 800) / max(pixels.shape[:2])
        found += 1
        yield cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=2)


def draw_sources(pictures: int, seed: int) -> Iterator[np.ndarray]:
    """Drawings in three channels, 300-800 px, every other one as from a scanner.

    The grain of scanned paper brings the mean file to the 60 kB of the competition.
    """
    rng = np.random.default_rng(seed)
    for number in range(pictures):
        drawn = draw_sketch(rng, int(rng.integers(300, 800)))
        if number % 2:
            grain = np.zeros(drawn.shape, np.int16)
            cv2.setRNGSeed(number)
            cv2.randn(grain, -4, rng.uniform(3, 6))
            drawn = cv2.add(drawn, grain, dtype=cv2.CV_8U)
        yield cv2.cvtColor(drawn, cv2.COLOR_GRAY2BGR)


def time_decoding(folder: Path, paths: pd.Series) -> float:
    """Seconds to read and decode every file once, a thread per core."""

    def decode(path: str) -> int:
        return cv2.imread(str(folder / path), cv2.IMREAD_UNCHANGED).size

    started = time.perf_counter()
    with passes.one_thread_each(0) as pool:
        sum(pool.map(decode, paths, chunksize=16))
    return time.perf_counter() - started


def measure_all(
    folder: Path, table: pd.DataFrame, rounds: int
) -> tuple[pd.DataFrame, tuple]:
    """Seconds of each step, a row a round, and what the steps gave."""
    time_decoding(folder, table["path"])  # fills the disk cache
    lines = []
    for turn in range(rounds):
        seconds = {"decode": time_decoding(folder, table["path"])}
        started = time.perf_counter()
        made = {"cache_dir": folder / f"cache{len(table)}-{turn}", "geometry": SHEET}
        seen = audit.inspect(table, folder, **made)
        seconds["audit"] = time.perf_counter() - started
        started = time.perf_counter()
        pairs = duplicates.find_pairs(seen.findings, seen.thumbs)
        seconds["pairs"] = time.perf_counter() - started
        started = time.perf_counter()
        found = groups.make_groups(pairs, seen.findings, manifest=table)
        seconds["groups"] = time.perf_counter() - started
        started = time.perf_counter()
        audit.inspect(table, folder, **made)
        seconds["audit again"] = time.perf_counter() - started
        lines.append(seconds)
    return pd.DataFrame(lines), (pairs, found)


def measure_memory(folder: Path, table: pd.DataFrame, rounds: int) -> list[float]:
    """Peak gigabytes of this process and its helpers, in passes nobody times."""
    peaks = []
    for turn in range(rounds):
        place = folder / f"memory{len(table)}-{turn}"
        with watch_memory() as seen:
            found = audit.inspect(table, folder, cache_dir=place, geometry=SHEET)
            pairs = duplicates.find_pairs(found.findings, found.thumbs)
            groups.make_groups(pairs, found.findings, manifest=table)
        peaks.append(max(seen))
        shutil.rmtree(place)
    return peaks


@contextlib.contextmanager
def watch_memory() -> Iterator[list[float]]:
    """Gigabytes of this process and those it started, five times a second.

    What several share is counted once (proportional set size; Linux only).
    """
    seen: list[float] = []
    over = threading.Event()

    def watch() -> None:
        whole = psutil.Process()
        while not over.wait(0.2):
            total = 0
            for each in (whole, *whole.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # ended meanwhile
                    total += each.memory_full_info().pss
            seen.append(total / 2**30)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def time_vectors(total: int) -> float:
    """Seconds to compare `total` random vectors with each other, in both frames."""
    rng = np.random.default_rng(0)
    spent = 0.0
    for frame in (spectra.BOX, spectra.FULL, spectra.LEFT, spectra.RIGHT):
        waves = frame.waves
        unit = rng.standard_normal((total, waves, waves), np.float32)
        unit /= np.linalg.norm(unit.reshape(total, -1), axis=1)[:, None, None]
        begin = time.perf_counter()
        spectra.compare_all(unit, unit, frame)
        spent += time.perf_counter() - begin
    return spent


PEERS = Path(__file__).with_name("peers-requirements.txt")
_PEER = """
import json, sys, time
from pathlib import Path
tool, folder, out = sys.argv[1:]

def make_cnn():
    from imagededup.methods import CNN
    try:
        return CNN(), "CNN"
    except OSError:  # its MobileNet is downloaded, and there may be no network
        import timm, torch
        from imagededup.utils import CustomModel
        from sketchlib.training import models
        model = models.make_model(OURS, 0, "auto", side_px=224).eval()
        way = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model
            def forward(self, x):
                return self.model(x)
        return CNN(model_config=CustomModel(OURS, Network(), way)), f"CNN of {OURS}"

OURS = "tf_efficientnet_lite0"
named = tool
if tool == "CNN":
    finder, named = make_cnn()
started = time.perf_counter()
if tool == "cleanvision":
    from cleanvision import Imagelab
    lab = Imagelab(data_path=folder)
    kinds = ("exact_duplicates", "near_duplicates")
    lab.find_issues({kind: {} for kind in kinds})
    sets = [group for kind in kinds for group in lab.info[kind]["sets"]]
    pairs = [(a, b) for g in sets for k, a in enumerate(g) for b in g[k + 1:]]
else:
    if tool != "CNN":
        from imagededup import methods
        finder = getattr(methods, tool)()
    found = finder.find_duplicates(image_dir=folder)
    pairs = [(a, b) for a, others in found.items() for b in others]
seconds = time.perf_counter() - started
names = sorted({tuple(sorted((Path(a).name, Path(b).name))) for a, b in pairs})
Path(out).write_text(json.dumps({"named": named, "seconds": seconds, "pairs": names}))
"""


def make_peers(home: Path) -> Path:
    """The Python of a virtual environment that holds the other tools.

    It sees the packages of this one, so that torch is not installed twice; what the
    tools need in another version is installed before them on its path.
    """
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        done = subprocess.run(asked, capture_output=True, text=True, check=True)
        ours = Path(done.stdout.strip()) / "ours.pth"
        ours.write_text(sysconfig.get_path("purelib") + "\n")
        install = [python, "-m", "pip", "install", "--quiet", "-r", PEERS]
        subprocess.run(install, check=True)
        (home / "ready").touch()
    return python


def compare_peers(
    folder: Path, table: pd.DataFrame, truth: pd.DataFrame, asked: argparse.Namespace
) -> pd.DataFrame:
    """Recall by kind of the other tools on the same files; pairs, real, seconds.

    The seconds are a list, one a round.
    """
    alone = folder / "peers"  # they take whole folders
    alone.mkdir()
    for path in table["path"]:
        os.link(folder / path, alone / Path(path).name)
    ends = zip(truth["image_id_a"], truth["image_id_b"], strict=True)
    planted = [tuple(sorted(Path(end).name for end in pair)) for pair in ends]
    python, rows = make_peers(asked.peers), {}
    for tool in ("PHash", "CNN", "cleanvision"):
        out, seconds = folder.parent / f"{tool}.json", []
        command = [python, "-c", _PEER, tool, alone, out]
        for _ in range(asked.rounds):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                break
            answer = json.loads(out.read_text())
            seconds.append(answer["seconds"])
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            print(f"{tool}: not measured ({last[:120]})")
            continue
        found = {tuple(pair) for pair in answer["pairs"]}
        hit = pd.Series([pair in found for pair in planted])
        row = hit.groupby(truth["planted"].to_numpy()).mean().astype(object)
        row["all kinds"] = hit.mean()
        same = [source_of(a) == source_of(b) for a, b in found]
        row["real pairs"] = float(np.mean(same)) if same else np.nan
        row["pairs"], row["seconds"] = len(found), seconds
        rows[answer["named"]] = row
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="pictures to plant in")
    parser.add_argument(
        "--pictures", type=int, nargs="+", default=[2000], help="planted ones included"
    )
    parser.add_argument("--copies", type=float, default=0.25, help="per original")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vectors", type=int, default=0, help="synthetic hashes")
    parser.add_argument("--peers", type=Path, help="their environment; made if missing")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        world = make_world(asked, Path(temporary) / "planted")
        lines = [measure_size(world, asked, n) for n in sorted(asked.pictures)]
        peers = pd.DataFrame()
        if asked.peers:
            folder, table, truth = pick(world, asked.copies, min(asked.pictures))
            peers = compare_peers(folder, table, truth, asked)
            print(peers.drop(index="seconds").astype(float).round(3), "\n")
    write(lines, peers)
    shown = pd.DataFrame(lines).drop(columns=["ratios", "own", "GB"])
    print(shown.round(3).to_string(index=False))
    if asked.vectors:
        spent = time_vectors(asked.vectors)
        print(f"{asked.vectors:,} random vectors, all frames: {spent:.1f} s")


def write(lines: list[dict[str, Any]], peers: pd.DataFrame) -> None:
    """Lines of the common table; the peers ran on the files of the first line."""
    rows = []
    for line in lines:
        what = f"e. audit and duplicates, {line['pictures']:,} pictures"
        rows.append(limit_row(f"{what}: time / decoding", line["ratios"], "x", 1.5))
        found = f"{line['recall']:.3f}, {line['real']:.3f} of the pairs real"
        good = line["recall"] >= 0.97 and line["real"] >= 0.95
        kinds = f"by kind {line['worst']:.3f}-{line['best']:.3f}"
        goal = "≥ 0.97, ≥ 0.95"
        rows.append(plain_row(f"{what}: recall", found, goal, good, kinds))
        rows.append(limit_row(f"{what}: memory", line["GB"], "GB", 2.0, told=max))
    ours = lines[0]
    for name, theirs in peers.items():
        row = ratio_row(
            f"e. seconds on {ours['pictures']:,} pictures / {name}",
            [
                (1 / a, 1 / b)
                for a, b in zip(ours["own"], theirs["seconds"], strict=True)
            ],
            0.0,
            "",
        )
        row["ours"] = f"{median(ours['own']):.1f} s, {ours['recall']:.2f} found, "
        row["ours"] += f"{ours['real']:.2f} of the pairs real"
        row["theirs"] = f"{median(theirs['seconds']):.1f} s, "
        row["theirs"] += f"{theirs['all kinds']:.2f} found, "
        row["theirs"] += f"{theirs['real pairs']:.2f} real"
        rows.append(row)
    write_rows("duplicates", rows)


World = tuple[Path, pd.DataFrame, pd.DataFrame]  # folder, manifest, truth


def make_world(asked: argparse.Namespace, folder: Path) -> World:
    """The pictures of the greatest size; smaller ones take the first of them."""
    started = time.perf_counter()
    originals = round(max(asked.pictures) / (1 + asked.copies))
    sources = (
        read_sources(asked.folder, originals, 0)
        if asked.folder
        else draw_sources(originals, 0)
    )
    table, truth = plant(folder, sources, asked.copies, 1)
    print(f"{len(table):,} pictures planted in {time.perf_counter() - started:.0f} s")
    return folder, table, truth


def pick(world: World, copies: float, size: int) -> World:
    """About `size` of the pictures, with the copies of theirs."""
    folder, table, truth = world
    last = f"{round(size / (1 + copies)):06d}"
    table = table[table["image_id"].map(source_of) < last].reset_index(drop=True)
    truth = truth[truth["image_id_a"].map(source_of) < last].reset_index(drop=True)
    return folder, table, truth


def measure_size(world: World, asked: argparse.Namespace, size: int) -> dict[str, Any]:
    """One line of the table: everything measured on about `size` pictures."""
    folder, table, truth = pick(world, asked.copies, size)
    rounds, (pairs, found) = measure_all(folder, table, asked.rounds)
    scores = report(table, truth, pairs, found)
    bytes_each = np.mean([(folder / path).stat().st_size for path in table["path"]])
    steps = {f"{step} s": spent for step, spent in rounds.median().items()}
    memory = measure_memory(folder, table, asked.rounds)
    own = rounds[list(STEPS)].sum(axis=1)
    ratios = own / rounds["decode"]
    return {
        "pictures": len(table),
        "kB": bytes_each / 1000,
        **steps,
        "x decode": ratios.median(),
        "least": ratios.min(),
        "most": ratios.max(),
        "peak GB": max(memory),
        "ratios": ratios.tolist(),
        "own": own.tolist(),
        "GB": memory,
        "cores": os.cpu_count() or 1,
        **scores,
    }


def report(
    table: pd.DataFrame, truth: pd.DataFrame, pairs: pd.DataFrame, found: pd.DataFrame
) -> dict[str, float]:
    """Print recall by kind; returns recall over all and the share of real pairs."""
    scores = score_kinds(pairs, truth)
    print(scores.round(3).to_string())
    groups_found = (found["group"].value_counts() > 1).sum()
    print(f"{len(table):,} pictures, {len(pairs):,} pairs, {groups_found:,} groups\n")
    same = pairs["image_id_a"].map(source_of) == pairs["image_id_b"].map(source_of)
    recall = float(np.average(scores["recall"], weights=scores["planted"]))
    worst, best = scores["recall"].agg(["min", "max"])
    return {
        "recall": recall,
        "real": float(same.mean()),
        "worst": worst,
        "best": best,
    }


if __name__ == "__main__":
    main()
