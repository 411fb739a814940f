"""One fold, from rows to predictions, kept in its own folder.

`train_fold` trains on all other folds, predicts the held-out rows and the test rows,
and writes both; asked again for the same, it reads what it wrote. Limits: a fold is
the unit that is skipped, an epoch the unit that is resumed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch import nn

from sketchlib import workspace
from sketchlib.data import cache, conflicts, manifest, splits
from sketchlib.training import (
    bank,
    budget,
    composites,
    compute,
    datasets,
    extras,
    features,
    heads,
    loop,
    models,
    optim,
    predictions,
    processes,
    trained,
    viewing,
)
from sketchlib.training import recipe as recipes
from sketchlib.training.network import Network
from sketchlib.training.trained import Result

PROBE_STRENGTH = 0.03  # inverse regularisation C of the probe, on standardised features


@dataclass(frozen=True)
class Task:
    """Everything a fold needs.

    Attributes:
        table: the manifest.
        folds: `image_id, fold` of the training rows.
        pixels: cache of the whole manifest.
        network: the model.
        recipe: how to train it.
        way: precision, layout, device.
        tta: views used for the test pictures and the held-out ones alike.
        run_dir: `fold<k>/` folders appear below it.
        cache_dir: frozen features are kept there; safe to delete.
        workers: loader processes.
        fresh: forget earlier checkpoints and results.
        save_minutes: also save inside an epoch, this often; 0 is off.
        feature_bank: frozen features that heads train on; see `with_bank`.
        extra: pictures that only train, see `extras`; their pixels are in the cache.
        targets: what the classes are put together from; see `composites`.
        policy: how copies with two labels are taught, one of `conflicts.POLICIES`.
        conflicts: those copies, of `groups.label_conflicts`.
    """

    table: pd.DataFrame
    folds: pd.DataFrame
    pixels: cache.PixelCache
    network: Network
    recipe: loop.Recipe
    way: compute.Compute
    tta: Sequence[str]
    run_dir: Path
    cache_dir: Path
    workers: int
    fresh: bool
    save_minutes: float = 0.0
    feature_bank: bank.Bank | None = None
    extra: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    targets: composites.Targets = composites.COMBINED
    policy: str = "keep"
    conflicts: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    def with_epochs(self, epochs: int) -> "Task":
        """The same task for fewer epochs."""
        return dataclasses.replace(self, recipe=loop.with_epochs(self.recipe, epochs))


def train_fold(
    task: Task, fold: int, on_epoch: Callable[[dict[str, float]], None] | None = None
) -> Result:
    """Train, or read back, fold `fold`.

    Args:
        task: see there.
        fold: number of the held-out fold; -1 holds nothing out.
        on_epoch: called with each row of the history.
    Raises:
        ValueError: an unfinished checkpoint of another task is in the way.
    """
    fold_dir = _fold_dir(task, fold)
    fold_dir.mkdir(parents=True, exist_ok=True)
    train, valid, test = make_examples(task, fold)
    _say_untrained(task, fold, train)
    asked = workspace.hash_value(_describe(task, train, valid, test))
    if found := _read_finished(fold_dir, asked, task.fresh):
        return found
    if task.feature_bank is not None:
        result = _train_on_bank(task, fold, (train, valid, test), on_epoch)
        workspace.write_json(fold_dir / "done.json", {"asked": asked})
        return result
    classes = manifest.class_names(task.table)
    model = _make_started(task, train)
    history = loop.fit(
        model,
        train,
        valid,
        task.recipe,
        way=task.way,
        fold_dir=fold_dir,
        workers=task.workers,
        on_epoch=on_epoch,
        save_minutes=task.save_minutes,
    )
    heads.merge_lora(model)
    parts = [
        predictions.predict(
            model, rows, classes, way=task.way, tta=task.tta, fold=number
        )
        for rows, number in ((valid, fold), (test, -1))
    ]
    result = Result(history, *parts)
    if processes.rank() == 0:
        trained.write_result(result, model, fold_dir)
        workspace.write_json(fold_dir / "done.json", {"asked": asked})
        loop.release(fold_dir)
    return result


def is_finished(task: Task, fold: int) -> bool:
    """Whether the folder of `fold` holds the result of this very task."""
    asked = workspace.hash_value(_describe(task, *make_examples(task, fold)))
    done = _fold_dir(task, fold) / "done.json"
    return (
        not task.fresh
        and done.exists()
        and workspace.read_json(done) == {"asked": asked}
    )


def _fold_dir(task: Task, fold: int) -> Path:
    return task.run_dir / (f"fold{fold}" if fold >= 0 else "all")


def _read_finished(fold_dir: Path, asked: str, fresh: bool) -> Result | None:
    """What stands in the folder, if it is of this very task; else make room for it."""
    done = fold_dir / "done.json"
    asked_before = workspace.read_json(done) if done.exists() else {}
    if asked_before == {"asked": asked} and not fresh:
        return trained.read_result(fold_dir)
    processes.wait()
    if processes.rank() == 0:
        if fresh or asked_before:
            loop.release(fold_dir)
        done.unlink(missing_ok=True)
    processes.wait()
    return None


def make_examples(
    task: Task, fold: int
) -> tuple[datasets.Examples, datasets.Examples, datasets.Examples]:
    """(train, held out, test) rows; unreadable pictures never train."""
    rows = manifest.train_rows(task.table).merge(
        task.folds[["image_id", "group", "fold"]], on="image_id", how="inner"
    )
    test = manifest.test_rows(task.table)
    held = (rows["fold"] == fold).to_numpy() & (fold >= 0)
    train = rows[~held]
    recipe = task.recipe
    if recipe.data_fraction < 1:
        labels, groups = train["label"].to_numpy(), train["group"].to_numpy()
        train = train[
            splits.take_fraction(labels, groups, recipe.data_fraction, recipe.seed)
        ]
    train, added = _teach(task, train), extras.for_fold(task.extra, fold)
    if len(added):
        train = pd.concat([train, added[["image_id", "label", "weight"]]])
    readable = task.pixels.readable[task.pixels.rows(train["image_id"])]
    return (
        _examples(task.pixels, train[readable]),
        _examples(task.pixels, rows[held]),
        _examples(task.pixels, test),
    )


def _teach(task: Task, train: pd.DataFrame) -> pd.DataFrame:
    """The rows with what each is taught; contradictions are seen among them alone."""
    sets = conflicts.number_sets(train["image_id"], task.conflicts)
    labels = train["label"].to_numpy()
    rows, taught, weights = conflicts.teach(labels, sets, task.policy)
    return train.iloc[rows].assign(label=taught, weight=weights)


def _examples(pixels: cache.PixelCache, rows: pd.DataFrame) -> datasets.Examples:
    labels = rows["label"].to_numpy(np.int64)
    weights = rows["weight"].to_numpy(np.float64) if "weight" in rows else np.zeros(0)
    return datasets.Examples(pixels, pixels.rows(rows["image_id"]), labels, weights)


def _describe(task: Task, *parts: datasets.Examples) -> list[object]:
    """What the result depends on, for the fold's fingerprint."""
    return [
        dataclasses.asdict(task.network),
        dataclasses.asdict(task.recipe),
        dataclasses.asdict(task.pixels.geometry),
        Path(str(getattr(task.pixels.pixels, "filename", ""))).name,
        list(task.tta),
        [[*part.image_ids] for part in parts],
        [part.labels.tolist() for part in parts],
        [_sample_bank(task.feature_bank)] if task.feature_bank is not None else [],
        [part.weights.tolist() for part in parts],
        *([dataclasses.asdict(task.targets)] if task.targets.how != "combined" else []),
    ]


def _say_untrained(task: Task, fold: int, train: datasets.Examples) -> None:
    """Name the classes that the fold's model never sees a picture of."""
    classes = manifest.class_names(task.table)
    told = composites.tell_untrained(task.targets, classes, train.labels)
    if told and processes.rank() == 0:
        where = f"fold {fold}" if fold >= 0 else "the model of all rows"
        print(f"notice: {where} {told}")


def _resolve(task: Task, train: datasets.Examples) -> composites.Targets:
    """The targets of this fold; groups are learned from its own training rows."""
    if not task.targets.learned:
        return task.targets
    found = _extract_once(task)[0][train.rows]
    classes = manifest.class_names(task.table)
    made = composites.resolve(task.targets, found, train.labels, len(classes))
    if processes.rank() == 0:
        print(f"notice: {composites.tell(made, classes)}")
    return made


def _extract_once(task: Task) -> np.ndarray:
    """`extract`, computed by the first process alone."""
    if processes.rank() > 0:
        processes.wait()
    found = extract(task)
    if processes.rank() == 0:
        processes.wait()
    return found


def _sample_bank(features: bank.Bank) -> list[object]:
    """Names and some numbers of a bank, which change when its backbone does."""
    few = features.features[:, ::97, ::31].astype(float)
    return [list(features.views), list(features.features.shape), float(few.sum())]


def with_bank(
    task: Task,
    draws: int,
    folders: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> Task:
    """The task with its heads on a feature bank, computed where it is not there yet.

    Args:
        task: with a frozen recipe.
        draws: augmented views of each recipe; 0 without folders leaves the task.
        folders: finished banks to use instead, their features joined; one copied from
            a server needs neither its backbone nor its weights here.
        progress: called with (passes done, passes).
    Raises:
        ValueError: the recipe asks for what features cannot follow, or a head that
            starts from a probe.
    """
    if not draws and not folders:
        return task
    recipes.check_banked(task.recipe)
    task.network.check_banked()
    found = [bank.read_bank(workspace.resolve_path(folder)) for folder in folders]
    if not found:
        model = task.network.make(0)
        views = bank.name_views(task.recipe, draws, task.tta)
        facts = bank.describe(model, task.network.model, task.pixels, task.way)
        key = workspace.hash_value([facts, views, task.recipe.seed])
        folder = task.cache_dir / f"bank-{key}"
        if (folder / "bank.json").exists():
            found = [bank.read_bank(folder)]
        else:
            found = [
                bank.compute_bank(
                    model,
                    task.pixels,
                    task.way,
                    views,
                    seed=task.recipe.seed,
                    folder=folder,
                    facts=facts,
                    progress=progress,
                )
            ]
    return dataclasses.replace(task, feature_bank=bank.join_banks(found))


def _train_on_bank(
    task: Task,
    fold: int,
    parts: Sequence[datasets.Examples],
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> Result:
    """A head on the bank, and its predictions; see `bank.fit_head`."""
    assert task.feature_bank is not None
    network = task.network
    classes = manifest.class_names(task.table)
    train, valid = (
        bank.Rows(part.image_ids, part.labels, part.weights) for part in parts[:2]
    )
    head, history = bank.fit_head(
        task.feature_bank,
        train,
        valid,
        task.recipe,
        bank.Form(network.head_layers, network.head_hidden, network.drop_rate),
        classes=len(classes),
        blocks=composites.make_blocks(_resolve(task, parts[0])),
        on_epoch=on_epoch,
    )
    oof, test = (
        bank.predict(
            head, task.feature_bank, part.image_ids, classes, tta=task.tta, fold=number
        )
        for part, number in zip(parts[1:], (fold, -1), strict=True)
    )
    result = Result(history, oof, test)
    trained.write_head(result, head, _fold_dir(task, fold))
    return result


def list_folds(planned: int, all_rows: bool) -> list[int]:
    """Numbers of the folds to train; the last planned is -1 under `all_rows`."""
    held = list(range(planned - all_rows)) or [0]
    return [*held, -1] if all_rows else held


def is_hopeless(task: Task, result: Result) -> bool:
    """Whether the fold ended below `target_accuracy`, so that others need not run."""
    reason = recipes.find_stop(task.recipe, result.history)
    return reason.startswith("below the target")


def make_load(
    table: pd.DataFrame,
    wanted: budget.Plan,
    recipe: loop.Recipe,
    tta: Sequence[str],
    images_per_second: float,
) -> budget.Load:
    """How many pictures a fold trains on and predicts, for the budget.

    `images_per_second` is that of steps on pictures in memory; loading, augmenting
    and saving take about a tenth more.
    """
    train, test = len(manifest.train_rows(table)), len(manifest.test_rows(table))
    held = train // wanted.folds
    predicted = (held + test) * (1 + len(viewing.spell(tta)))
    stages = recipes.make_stages(recipe)
    sides = [
        recipes.find_stage(stages, epoch).side_px or wanted.side_px
        for epoch in range(recipe.epochs)
    ]
    speed = 0.9 * images_per_second
    scored = round(recipe.score_fraction * held)
    return budget.Load(train - held, scored, predicted, speed, tuple(sides))


def extract(task: Task) -> np.ndarray:
    """(1, N, D) frozen features of every picture of the cache, computed once."""
    if task.feature_bank is not None:
        return task.feature_bank.take(0, task.pixels.image_ids)[None]
    return features.extract(
        task.network.make(0),
        task.pixels,
        task.way,
        views=(),
        name=task.network.model,
        cache_dir=task.cache_dir,
    )


def with_found_lr(task: Task) -> Task:
    """The task with the rate that `loop.find_lr` suggests on the rows of fold 0.

    The curve stands in `rate.csv` of the run folder and is read back from there, so
    that a run that was interrupted goes on at the same rate.
    """
    train, _, _ = make_examples(task, 0)
    asked = workspace.hash_value(_describe(task, train))
    path, key = task.run_dir / "rate.csv", task.run_dir / "rate.json"
    known = path.exists() and key.exists() and not task.fresh
    if not known or workspace.read_json(key) != {"asked": asked}:
        model = _make_started(task, train)
        curve = loop.find_lr(model, train, task.recipe, task.way)
        with workspace.atomic_path(path) as temporary:
            curve.to_csv(temporary, index=False)
        workspace.write_json(key, {"asked": asked})
    lr = optim.suggest_lr(pd.read_csv(path))
    return dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, lr=lr))


def _make_started(task: Task, train: datasets.Examples) -> nn.Module:
    """The model of a fold as training finds it."""
    workspace.seed_everything(task.recipe.seed)  # the new classifier is random
    classes = manifest.class_names(task.table)
    model = task.network.make(len(classes))
    if blocks := composites.make_blocks(_resolve(task, train)):
        task.network.compose(model, blocks)
    if task.network.head == "probe":
        _start_from_probe(task, model, train)
    elif task.network.head == "transplant":
        _transplant(task.network, model, classes)
    return model


def _start_from_probe(task: Task, model: nn.Module, train: datasets.Examples) -> None:
    found = _extract_once(task)[:, train.rows]
    if composed := composites.find_head(model):
        composites.start_from_probes(composed, found, train.labels, PROBE_STRENGTH)
        return
    head = features.fit_probe(found, train.labels, PROBE_STRENGTH, train.weights)
    features.start_head(model, head)


def _transplant(network: Network, model: nn.Module, classes: Sequence[str]) -> None:
    full = models.make_model(
        network.model, -1, network.weights, side_px=network.side_px
    )
    heads.transplant(model, full, heads.find_rows(classes, network.mapping, full))


def probe(task: Task, image_ids: Sequence[str]) -> predictions.Predictions:
    """A linear probe of the same backbone, pixels and folds, on `image_ids`.

    It costs one pass over the pictures, and is what training has to beat.
    """
    table = manifest.train_rows(task.table).merge(
        task.folds[["image_id", "fold"]], on="image_id"
    )
    table.loc[~table["image_id"].isin(image_ids), "fold"] = -1
    return features.probe_folds(
        extract(task)[:, task.pixels.rows(table["image_id"])],
        table["label"].to_numpy(),
        table,
        manifest.class_names(task.table),
        strength=PROBE_STRENGTH,
    )
