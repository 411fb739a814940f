"""Every technique of the reports, by the parameter of 03_train that offers it."""

import dataclasses
from pathlib import Path

import pytest

from sketchlib.training import beside, capacity, recipe
from sketchlib.workbook import parameters

ROOT = Path(__file__).resolve().parents[1]
SPLITTING = {
    "stratified hold-out, stratified folds": ["folds"],
    "group-aware folds": ["audit_run"],
    "weighted sampler, up- and down-sampling": ["sampler", "class_weights"],
    "composite label as one head, several heads": ["targets", "attributes"],
    "a model for each attribute": ["columns"],
    "coarse-to-fine": ["targets", "superclasses", "superclass_count"],
}
PIXELS = {
    "stretch, pad, centre crop, crop to ink": ["fit"],
    "recipes of augmentation": ["augment", "curriculum"],
    "greyscale or colour": ["channels"],
    "background removal": ["paper"],
    "train-only variants, mosaics": ["variants_run"],
}
MODELS = {
    "any timm model": ["model", "weights", "side_px"],
    "feature bank": ["bank_views", "banks"],
    "LoRA": ["lora_rank"],
    "fine-tune, frozen, partly frozen": ["frozen", "unfreeze_last", "layer_decay"],
    "multi-sample dropout, MLP head": ["head_layers", "head_hidden"],
    "head from the rows of ImageNet": ["head", "mapping"],
}
ALL = SPLITTING | PIXELS | MODELS
TRAINING = {
    "mixed precision": ["precision"],
    "gradient accumulation": ["accumulate"],
    "Adam, AdamW, SGD, RAdam": ["optimizer", "momentum", "beta2"],
    "SAM": ["sam_rho"],
    "schedules": ["schedule", "cycles", "plateau_epochs"],
    "warm-up": ["warmup_epochs"],
    "cross-entropy, focal, soft F1, BCE": ["loss", "focal_gamma"],
    "label smoothing": ["label_smoothing"],
    "L1, L2, weight decay": ["l1", "l2", "weight_decay"],
    "dropout, stochastic depth": ["drop_rate", "drop_path_rate"],
    "early stopping": ["patience"],
    "best-k checkpoints, weight averaging": ["keep", "keep_epochs"],
    "stop when a target is missed": ["target_accuracy", "target_epochs"],
    "EMA": ["ema_decay"],
    "LR finder": ["find_lr"],
    "time budget": ["budget_minutes"],
    "resume after any interruption": ["save_minutes", "fresh"],
    "clipping, a loss that is not finite": ["clip_norm", "retry_nan"],
    "curriculum of recipes, growing pictures": ["curriculum", "progressive"],
    "mixup, CutMix with a switch-off epoch": [
        "mixup_alpha",
        "cutmix_alpha",
        "mix_off_epochs",
    ],
    "part of the data": ["data_fraction"],
    "train-only pictures with provenance": ["extra_csv"],
    "pseudo-labels": [
        "pseudo_runs",
        "pseudo_confidence",
        "pseudo_per_class",
        "pseudo_weight",
    ],
    "final model on all rows": ["all_rows"],
    "strict repetition": ["deterministic", "seed"],
    "the largest batch that fits": ["batch_size", "accumulate", "lr_rule", "lr_batch"],
    "loader processes by measure": ["workers"],
    "folds at once": ["fold_jobs", "fold_engine"],
}


@pytest.fixture(scope="module")
def schema():
    return parameters.read_parameters(ROOT / "notebooks" / "03_train.ipynb")


@pytest.mark.parametrize("technique", [*ALL, *TRAINING])
def test_a_technique_is_a_parameter_with_help(schema, technique):
    for name in (ALL | TRAINING)[technique]:
        assert name in schema, name
        assert len(schema[name].help) >= 3, name


def test_choices_in_the_help_are_those_of_the_library(schema):
    for name, choices in (
        ("loss", recipe.LOSSES),
        ("class_weights", recipe.CLASS_WEIGHTS),
        ("schedule", recipe.SCHEDULES),
        ("keep", recipe.KEEPS),
        ("norm", recipe.NORMS),
        ("sampler", recipe.SAMPLERS),
        ("lr_rule", capacity.LR_RULES),
        ("fold_engine", beside.ENGINES),
    ):
        assert schema[name].choices == choices, name


def test_every_field_of_a_recipe_is_a_parameter_and_the_defaults_are_a_recipe(schema):
    names = [field.name for field in dataclasses.fields(recipe.Recipe)]
    assert set(names) <= set(schema)
    made = recipe.Recipe(**{name: schema[name].default for name in names})
    assert made.epochs == schema["epochs"].default
    assert all(
        field.default is dataclasses.MISSING
        for field in dataclasses.fields(recipe.Recipe)
    )
