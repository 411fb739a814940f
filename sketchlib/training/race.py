"""The race: every setting on the same pictures, in the same order, several seeds.

A heat is one setting, one seed, one held-out fold: a short fine-tune, or a linear
probe on frozen features of augmented views. Heats are kept beside the caches and
read again when the same is asked. Limits: a small model for a few epochs favours
mild settings; what wins here is where to start, not the last word.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import (
    compute,
    datasets,
    features,
    folds,
    loop,
    models,
    predictions,
    recipes,
    transforms,
)
from sketchlib.training.network import STATS

METHODS = ("probe", "finetune")
_VERSION = 1


@dataclass(frozen=True)
class Setting:
    """What runs against the others.

    Attributes:
        name: as asked, such as `none+pad`.
        recipe: augmentation.
        geometry: how a picture becomes a square.
        stats: mean and deviation that normalise: the `model`'s or the `dataset`'s.
    """

    name: str
    recipe: str
    geometry: cache.Geometry
    stats: str


def parse_setting(name: str, geometry: cache.Geometry) -> Setting:
    """A recipe, and what else differs from `geometry`: `none+pad+colour+dataset`.

    Args:
        name: recipe, then any of a fit, a paper, grey or colour, model or dataset.
        geometry: of everything the name does not say.
    Raises:
        ValueError: an unknown recipe or word, with the nearest one.
    """
    recipe, *words = name.split("+")
    recipes.check_recipe(recipe)
    stats = "model"
    for word in words:
        if word in cache.FITS:
            geometry = dataclasses.replace(geometry, fit=word)
        elif word in cache.PAPERS:
            geometry = dataclasses.replace(geometry, paper=word)
        elif word == "grey":
            geometry = dataclasses.replace(geometry, channels="grey")
        elif word == "colour":
            geometry = dataclasses.replace(geometry, channels="colour")
        elif word in STATS:
            stats = word
        else:
            known = [*cache.FITS, *cache.PAPERS, "grey", "colour", *STATS]
            raise ValueError(
                f"after a recipe and `+`, {name!r} may name {', '.join(known)}, but "
                f"{word!r} came{recipes.suggest(word, known)}"
            )
    return Setting(name, recipe, geometry, stats)


@dataclass(frozen=True)
class Track:
    """What is the same for every setting.

    Attributes:
        table: the manifest.
        folds: `image_id, fold` of the training rows.
        data_dir: the pictures.
        cache_dir: pixels, features and heats are kept there; safe to delete.
        network: the model.
        recipe: how a fine-tune goes; `augment` and `seed` are each heat's own.
        way: precision, layout, device.
        method: `probe` or `finetune`.
        views: augmented views of each picture that a probe learns from.
    """

    table: pd.DataFrame
    folds: pd.DataFrame
    data_dir: Path
    cache_dir: Path
    network: folds.Network
    recipe: loop.Recipe
    way: compute.Compute
    method: str
    views: int

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """The training rows with their folds."""
        own = self.folds[["image_id", "fold"]]
        return manifest.train_rows(self.table).merge(own, on="image_id")

    def open_pixels(self, geometry: cache.Geometry) -> cache.PixelCache:
        """The pixels of `rows`."""
        return cache.open_pixels(self.rows, self.data_dir, geometry, self.cache_dir)


def make_track(
    table: pd.DataFrame,
    fold_table: pd.DataFrame,
    asked: Mapping[str, Any],
    *,
    data_dir: Path,
    cache_dir: Path,
) -> Track:
    """The track that `asked` describes.

    Args:
        table: the manifest.
        fold_table: `image_id, fold` of the training rows.
        asked: parameters of 03_train, with model, weights, side_px, race_by and
            race_epochs (epochs of a fine-tune, views of a probe) of the race.
        data_dir: the pictures.
        cache_dir: see `Track`.
    Raises:
        ValueError: the model or the recipe cannot be.
    """
    head = "random" if asked["weights"] == "none" else "probe"
    epochs, views = int(asked["race_epochs"]), int(asked["race_epochs"])
    asked = {**asked, "head": head}
    asked["augment"], asked["epochs"], asked["keep"] = "none", epochs, "last"
    network = workspace.pick(folds.Network, asked)
    network.check()
    recipe = workspace.pick(loop.Recipe, asked)
    channels = 1 if asked["channels"] == "grey" else 3
    way = compute.choose_compute(
        network.outline(len(manifest.class_names(table))),
        (recipe.batch_size, channels, network.side_px),
        precision=asked["precision"],
        layout=asked["layout"],
        norm=recipe.norm,
        remember=cache_dir / "compute.json",
    )
    method = asked["race_by"]
    return Track(
        table, fold_table, data_dir, cache_dir, network, recipe, way, method, views
    )


def plan_heats(
    fold_table: pd.DataFrame, seeds: int, each: int
) -> list[tuple[int, int]]:
    """(seed, held-out fold): `each` folds a seed, the next seed takes the next ones.

    Other folds for each seed bring in more pictures, and those are what a small gain
    is short of.
    """
    count = int(fold_table["fold"].max()) + 1
    each = min(each or count, count)
    return [
        (seed, (seed * each + turn) % count)
        for seed in range(seeds)
        for turn in range(each)
    ]


def order_settings(track: Track, settings: Sequence[Setting]) -> list[Setting]:
    """Cheapest first, by the time to draw a few pictures."""

    def cost(setting: Setting) -> float:
        pixels = track.open_pixels(setting.geometry)
        recipe = transforms.make_recipe(setting.recipe)
        started = time.perf_counter()
        for row in range(min(64, len(pixels.pixels))):
            transforms.draw(recipe, np.asarray(pixels.pixels[row]), 0, 99, row)
        return time.perf_counter() - started

    return sorted(settings, key=cost)


def run_heat(track: Track, setting: Setting, seed: int, fold: int) -> pd.DataFrame:
    """One setting, one seed, one held-out fold; read back when it has been run.

    Returns:
        One row per held-out picture: setting, seed, fold, image_id, hit (bool),
        seconds (an epoch of the fine-tune, or a view of the probe).
    """
    asked = workspace.hash_value(_describe(track, setting, seed, fold))
    path = track.cache_dir / "race" / f"{asked}.csv"
    if not path.exists():
        run = _probe if track.method == "probe" else _finetune
        found, seconds = run(track, setting, seed, fold)
        labels = track.rows.set_index("image_id").loc[found.image_ids, "class_name"]
        named = found.classes[found.logits.argmax(1)]
        table = pd.DataFrame(
            {
                "seed": seed,
                "fold": fold,
                "image_id": found.image_ids,
                "hit": named == labels.to_numpy(),
                "seconds": seconds,
            }
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace.atomic_path(path) as temporary:
            table.to_csv(temporary, index=False)
    table = pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    table.insert(0, "setting", setting.name)
    return table


def _describe(track: Track, setting: Setting, seed: int, fold: int) -> list[Any]:
    """Everything a heat's result depends on."""
    own = [recipes.describe(setting.recipe), dataclasses.asdict(setting.geometry)]
    shared = [track.method, dataclasses.asdict(track.network), track.way.precision]
    plan = (
        dataclasses.asdict(track.recipe) if track.method == "finetune" else track.views
    )
    pixels = track.open_pixels(setting.geometry).pixels
    rows = [Path(str(getattr(pixels, "filename", ""))).name]
    rows += [track.rows[["image_id", "label", "fold"]].to_numpy().tolist()]
    return [_VERSION, *own, setting.stats, *shared, plan, rows, seed, fold]


def _split(
    track: Track, pixels: cache.PixelCache, fold: int
) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, held-out rows), readable training rows only."""
    held = track.rows["fold"].to_numpy() == fold
    return np.flatnonzero(~held & pixels.readable), np.flatnonzero(held)


def _probe(
    track: Track, setting: Setting, seed: int, fold: int
) -> tuple[predictions.Predictions, float]:
    """A linear head on frozen features: the pictures as they are, then the draws."""
    pixels = track.open_pixels(setting.geometry)
    train, held = _split(track, pixels, fold)
    clean = _clean_features(track, setting, pixels)
    drawn, seconds = _drawn_features(track, setting, pixels, seed)
    stack = np.concatenate([clean, drawn])  # (1 + V, N, D)
    labels = track.rows["label"].to_numpy()
    strength = folds.PROBE_STRENGTH / len(stack)  # the loss is a sum over all views
    head = features.fit_probe(stack[:, train], labels[train], strength)
    classes = manifest.class_names(track.table)
    logits = features.predict_probe(head, clean[0, held], len(classes))
    ids = pixels.image_ids[held]
    number = np.full(len(held), fold)
    return predictions.Predictions(ids, np.asarray(classes), logits, number), seconds


def _make_model(track: Track, setting: Setting, classes: int) -> nn.Module:
    """A fresh model that normalises as the setting says."""
    network = dataclasses.replace(track.network, stats=setting.stats)
    return network.with_stats(track.open_pixels(setting.geometry)).make(classes)


def _clean_features(
    track: Track, setting: Setting, pixels: cache.PixelCache
) -> np.ndarray:
    """(1, N, D) of the pictures as they are."""
    name = track.network.model
    workspace.seed_everything(0)  # a model without weights is random
    model = _make_model(track, setting, 0)
    return features.extract(
        model, pixels, track.way, views=[], name=name, cache_dir=track.cache_dir
    )


def _drawn_features(
    track: Track, setting: Setting, pixels: cache.PixelCache, seed: int
) -> tuple[np.ndarray, float]:
    """(V, N, D) of the draws of V epochs, and the seconds of one; V is 0 for none."""
    clean = _clean_features(track, setting, pixels)
    if not recipes.read_recipe(setting.recipe):
        return clean[:0], 0.0
    asked = workspace.hash_value(_describe(track, setting, seed, -1))
    path = track.cache_dir / "race" / f"{asked}.npz"
    if not path.exists():
        workspace.seed_everything(0)
        model = track.way.place(_make_model(track, setting, 0)).eval()
        started = time.perf_counter()
        found = [
            np.concatenate(
                list(_draw_view(track, setting, (pixels, model), (seed, epoch)))
            )
            for epoch in range(track.views)
        ]
        seconds = (time.perf_counter() - started) / track.views
        path.parent.mkdir(parents=True, exist_ok=True)
        with workspace.atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, found=np.stack(found), seconds=seconds)
    kept = np.load(path)
    return kept["found"], float(kept["seconds"])


@torch.inference_mode()
def _draw_view(
    track: Track,
    setting: Setting,
    source: tuple[cache.PixelCache, nn.Module],
    stream: tuple[int, int],
) -> Iterator[np.ndarray]:
    """(B, D) float16 parts of one epoch's draws, in order."""
    pixels, model = source
    recipe = transforms.make_recipe(setting.recipe)
    stats = [value.to(track.way.device) for value in models.input_stats(model)]
    for start in range(0, len(pixels.pixels), 64):
        rows = range(start, min(start + 64, len(pixels.pixels)))
        drawn = [
            transforms.draw(recipe, np.asarray(pixels.pixels[row]), *stream, row)
            for row in rows
        ]
        batch = datasets.as_batch(drawn)
        inputs = datasets.to_input(batch.to(track.way.device), *stats)
        with track.way.autocast():
            found = model(inputs.contiguous(memory_format=track.way.memory_format))
        yield found.float().cpu().numpy().astype(np.float16)


def _finetune(
    track: Track, setting: Setting, seed: int, fold: int
) -> tuple[predictions.Predictions, float]:
    """A short fine-tune with the fold held out."""
    pixels = track.open_pixels(setting.geometry)
    labels = track.rows["label"].to_numpy()
    train, held = (
        datasets.Examples(pixels, rows, labels[rows])
        for rows in _split(track, pixels, fold)
    )
    classes = manifest.class_names(track.table)
    workspace.seed_everything(seed)
    model = _make_model(track, setting, len(classes))
    if track.network.head == "probe":
        clean = _clean_features(track, setting, pixels)
        head = features.fit_probe(
            clean[:, train.rows], train.labels, folds.PROBE_STRENGTH
        )
        features.start_head(model, head)
    recipe = dataclasses.replace(track.recipe, augment=setting.recipe, seed=seed)
    nobody = dataclasses.replace(held, rows=held.rows[:0], labels=held.labels[:0])
    with tempfile.TemporaryDirectory(dir=track.cache_dir) as folder:
        history = loop.fit(
            model, train, nobody, recipe, way=track.way, fold_dir=Path(folder)
        )
    found = predictions.predict(model, held, classes, way=track.way, fold=fold)
    return found, float(history["seconds"].median())


def write_winner(path: Path, setting: Setting, reason: str) -> None:
    """What 03_train reads for `augment: winner`, or as its file of parameters.

    Args:
        path: `winner.yaml` in the run's folder.
        setting: what won.
        reason: one line, written above.
    """
    geometry = setting.geometry
    lines = [
        f"# {reason}",
        "# sketch run 03_train -p augment winner      takes the recipe alone",
        f"augment: {setting.recipe}",
        f"fit: {geometry.fit}",
        f"paper: {geometry.paper}",
        f"channels: {geometry.channels}",
        f"stats: {setting.stats}",
    ]
    workspace.write_text(path, "\n".join(lines) + "\n")
