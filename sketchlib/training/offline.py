"""Variants of training pictures, written as files with where they come from.

Edges, closed lines, bent lines, or any recipe, drawn once from the original file;
mosaics put two drawings of one class side by side. A variant belongs to its
original's fold: it trains when the original trains, and is never held out or tested
on. 03_train reads the table. Limits: a mosaic is made within one fold, so the folds
must be those it was made with.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import images
from sketchlib.training import extras, recipes, transforms

FILE = "variants.csv"  # in the run folder of 02_augmentation
MOSAICS = ("hstack", "vstack")
COLUMNS = ["image_id", "source_id", "path", "label", "weight", "partner_id"]


@dataclass(frozen=True)
class Order:
    """What to make of every training picture.

    Attributes:
        kind: a recipe, or `hstack` or `vstack`.
        copies: variants of each picture, ≥ 1.
        side_px: longer side they are shrunk to before, pixels.
        weight: of a variant in the loss, beside an original's 1; over 0.
        seed: ≥ 0.
    """

    kind: str
    copies: int
    side_px: int
    weight: float
    seed: int

    def __post_init__(self) -> None:
        if self.kind not in MOSAICS:
            recipes.check_recipe(self.kind)
        wrong = [
            (self.copies >= 1, "copies", "at least 1", self.copies),
            (8 <= self.side_px <= 4096, "side_px", "8-4096", self.side_px),
            (self.weight > 0, "weight", "over 0", self.weight),
        ]
        for holds, name, wanted, got in wrong:
            if not holds:
                raise ValueError(f"`{name}` should be {wanted}, but {got!r} came")


def make_variants(
    rows: pd.DataFrame,
    data_dir: Path,
    order: Order,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Draw and write the variants of training pictures; unreadable ones have none.

    Args:
        rows: training rows with `image_id, path, label, fold`.
        data_dir: folder of the pictures.
        order: what to make.
        folder: PNG files go to `<folder>/<kind>/`, `provenance.json` beside them.
        progress: called with (done, total).
    Returns:
        image_id, source_id, path (relative to `folder`), label, weight, partner_id
        (the other drawing of a mosaic, else empty).
    Raises:
        ValueError: a row is no training row.
    """
    if "subset" in rows and (rows["subset"] != "train").any():
        raise ValueError(
            "variants are of training pictures only, but rows of "
            f"{sorted(set(rows['subset']))} came; pass `manifest.train_rows`"
        )
    (folder / order.kind).mkdir(parents=True, exist_ok=True)
    partners = _choose_partners(rows, order)
    made = []
    for number, row in enumerate(rows.to_dict("records")):
        other = partners[number] if partners is not None else None
        if partners is not None and other is None:
            continue  # the only drawing of its class in its fold
        partner = rows.iloc[other].to_dict() if other is not None else None
        made += _make_copies(number, (row, partner), data_dir, order, folder)
        if progress:
            progress(number + 1, len(rows))
    _write_provenance(folder / order.kind, order, len(made))
    return pd.DataFrame(made, columns=COLUMNS)


def _make_copies(
    number: int,
    sources: tuple[dict, dict | None],
    data_dir: Path,
    order: Order,
    folder: Path,
) -> list[tuple]:
    """Write the variants of one picture; nothing where a source is unreadable."""
    row, partner = sources
    try:
        pictures = [
            _read_small(data_dir, source["path"], order.side_px)
            for source in (row, partner)
            if source is not None
        ]
    except images.PictureError:
        return []
    made = []
    for copy in range(order.copies):
        if len(pictures) > 1:
            drawn = stack_pictures(pictures, order.kind)
        else:
            recipe = transforms.make_recipe(order.kind)
            drawn = transforms.draw(recipe, pictures[0], order.seed, copy, number)
        code = hashlib.sha256(str(row["image_id"]).encode()).hexdigest()[:16]
        path = f"{order.kind.replace('/', '_')}/{code}-{order.seed}-{copy}.png"
        _write_png(folder / path, drawn)
        name = f"variant/{order.kind}/{order.seed}-{copy}/{row['image_id']}"
        other = partner["image_id"] if partner is not None else ""
        made.append((name, row["image_id"], path, row["label"], order.weight, other))
        if len(pictures) > 1:
            break  # a second copy of a mosaic would be the same
    return made


def _read_small(data_dir: Path, path: str, side_px: int) -> np.ndarray:
    pixels = images.read_picture(images.picture_path(data_dir, path), "stored")
    scale = side_px / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = pixels.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    with workspace.atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", stored)[1].tobytes())


def _choose_partners(rows: pd.DataFrame, order: Order) -> list[int | None] | None:
    """For a mosaic, another drawing of the same class and fold by position."""
    if order.kind not in MOSAICS:
        return None
    rng = np.random.default_rng(order.seed)
    chosen: list[int | None] = [None] * len(rows)
    keys = [rows["label"].to_numpy(), rows["fold"].to_numpy()]
    for _, part in pd.Series(np.arange(len(rows))).groupby(keys):
        order_of = rng.permutation(part.to_numpy())
        if len(order_of) > 1:
            for here, there in zip(order_of, np.roll(order_of, 1), strict=True):
                chosen[int(here)] = int(there)
    return chosen


def stack_pictures(pictures: list[np.ndarray], kind: str) -> np.ndarray:
    """Two pictures side by side (hstack) or one above the other (vstack).

    Both get the height (width) of the larger one, padded with their own paper.
    """
    colour = any(picture.ndim == 3 for picture in pictures)
    alike = [
        cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
        if colour and picture.ndim == 2
        else picture
        for picture in pictures
    ]
    axis = 1 if kind == "hstack" else 0
    most = max(picture.shape[1 - axis] for picture in alike)
    padded = [_pad(picture, most, 1 - axis) for picture in alike]
    return np.concatenate(padded, axis=axis)


def _pad(pixels: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Centred on its own paper, `length` along `axis`."""
    shape = list(pixels.shape)
    start, shape[axis] = (length - shape[axis]) // 2, length
    canvas = np.empty(shape, np.uint8)
    canvas[:] = transforms.find_ground(pixels)
    place = [slice(None)] * pixels.ndim
    place[axis] = slice(start, start + pixels.shape[axis])
    canvas[tuple(place)] = pixels
    return canvas


def _write_provenance(folder: Path, order: Order, made: int) -> None:
    mosaic = order.kind in MOSAICS
    steps = [order.kind] if mosaic else recipes.describe(order.kind)
    facts = {"steps": steps, "copies": order.copies, "side_px": order.side_px}
    facts |= {"seed": order.seed, "written": made, **workspace.provenance()}
    workspace.write_json(folder / "provenance.json", facts)


def check_variants(variants: pd.DataFrame, folds: pd.DataFrame) -> pd.Series:
    """The fold of every variant: its original's.

    Args:
        variants: of `make_variants`.
        folds: `image_id, fold` of the training rows.
    Returns:
        Fold numbers, by the variants' index.
    Raises:
        ValueError: an original is no training picture, or the two drawings of a
            mosaic lie in different folds.
    """
    known = folds.set_index("image_id")["fold"]
    strange = variants.loc[~variants["source_id"].isin(known.index), "source_id"]
    if len(strange):
        raise ValueError(
            f"a variant's source should be a training picture, but {strange.iloc[0]!r} "
            f"is none ({len(strange)} such rows); make the variants of this data"
        )
    own = variants["source_id"].map(known)
    if "partner_id" in variants:
        mosaics = variants[variants["partner_id"].fillna("") != ""]
        other = mosaics["partner_id"].map(known)
        apart = mosaics[other != own.loc[mosaics.index]]
        if len(apart):
            raise ValueError(
                f"the drawings of a mosaic should be in one fold, but those of "
                f"{apart['image_id'].iloc[0]!r} are not ({len(apart)} such rows); "
                "make the mosaics again with these folds"
            )
    return own


def read_variants(run_dir: Path, folds: pd.DataFrame) -> pd.DataFrame:
    """The variants that a run of 02_augmentation wrote, as train-only pictures.

    A variant serves the models of all folds but its original's, and the model of all
    rows.

    Args:
        run_dir: folder of that run.
        folds: `image_id, fold` of the training rows.
    Returns:
        Rows of `extras.COLUMNS`.
    Raises:
        FileNotFoundError: the run wrote no variants.
        ValueError: see `check_variants`.
    """
    path = run_dir / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"`{FILE}` was expected in {run_dir}; write it with `sketch run "
            f"02_augmentation -p run_name {run_dir.name} -p variants '[canny]'`"
        )
    table = pd.read_csv(path, keep_default_na=False)
    own = check_variants(table, folds)
    kinds = "variant: " + table["image_id"].str.split("/").str[1]
    made = table.assign(root=str(run_dir), source=kinds)
    held = sorted(fold for fold in folds["fold"].unique() if fold >= 0)
    parts = [made[own < 0].assign(serves=extras.EVERY)]
    parts += [made[(own >= 0) & (own != fold)].assign(serves=fold) for fold in held]
    parts.append(made[own >= 0].assign(serves=extras.ALL_ROWS))
    return pd.concat(parts, ignore_index=True)[extras.COLUMNS]
