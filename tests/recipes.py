"""The smallest recipe and task that still train; tests replace what they are about."""

import dataclasses

from sketchlib.data import cache, manifest, splits
from sketchlib.training import compute, folds, loop

PLAIN = loop.Recipe(
    augment="flip",
    curriculum=(),
    progressive=(),
    data_fraction=1.0,
    sampler="plain",
    loss="cross_entropy",
    focal_gamma=2.0,
    class_weights="none",
    l1=0.0,
    l2=0.0,
    sam_rho=0.0,
    momentum=0.9,
    beta2=0.999,
    cycles=2,
    plateau_epochs=2,
    keep_epochs=2,
    patience=0,
    target_accuracy=0.0,
    target_epochs=1,
    score_fraction=1.0,
    retry_nan=False,
    deterministic=True,
    epochs=2,
    batch_size=8,
    accumulate=1,
    optimizer="adamw",
    lr=0.003,
    schedule="cosine",
    warmup_epochs=0.5,
    weight_decay=0.01,
    layer_decay=0.0,
    label_smoothing=0.0,
    mixup_alpha=0.0,
    cutmix_alpha=0.0,
    mix_off_epochs=0,
    ema_decay=0.0,
    clip_norm=0.0,
    frozen=False,
    unfreeze_last=0,
    norm="learn",
    keep="last",
    seed=0,
)
FP32 = compute.Compute("cpu", "fp32", "nchw", 0.0)
TINY = folds.Network(
    model="test_resnet",
    weights="none",
    drop_rate=0.0,
    drop_path_rate=0.0,
    head="random",
    head_layers="linear",
    head_hidden=8,
    mapping="",
    lora_rank=0,
    side_px=32,
    stats="model",
)
GEOMETRY = cache.Geometry(32, "ink", "grey", "white")


def make(**changes) -> loop.Recipe:
    return dataclasses.replace(PLAIN, **changes)


def make_task(data_dir, folder, **changes) -> folds.Task:
    """The drawings below `data_dir` in two folds; run and cache go to `folder`."""
    table = manifest.read_manifest(data_dir)
    task = folds.Task(
        table=table,
        folds=splits.make_folds(table, None, 2, seed=0),
        pixels=cache.open_pixels(table, data_dir, GEOMETRY, folder / "cache"),
        network=TINY,
        recipe=make(epochs=1),
        way=FP32,
        tta=(),
        run_dir=folder / "run",
        cache_dir=folder / "cache",
        workers=0,
        fresh=False,
    )
    return dataclasses.replace(task, **changes)
