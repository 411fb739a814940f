import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from recipes import FP32, make

from sketchlib import workspace
from sketchlib.data import cache, manifest
from sketchlib.training import compute, datasets, loop, memory


@pytest.fixture(scope="module")
def examples(world, tmp_path_factory):
    table = manifest.train_rows(manifest.read_manifest(world))
    geometry = cache.Geometry(32, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path_factory.mktemp("cache"))
    rows = np.flatnonzero(pixels.readable)
    return datasets.Examples(pixels, rows, table["label"].to_numpy()[rows])


def take(examples, rows):
    return datasets.Examples(
        examples.pixels, examples.rows[rows], examples.labels[rows]
    )


def make_model(classes=4):
    workspace.seed_everything(0)
    return timm.create_model("test_resnet", num_classes=classes)


def make_vit():
    """A model without batch norm or dropout."""
    workspace.seed_everything(0)
    return timm.create_model("test_vit", num_classes=4, img_size=32)


def close_weights(one, two, atol=1e-4):
    return all(
        torch.allclose(a, b, atol=atol)
        for a, b in zip(one.parameters(), two.parameters(), strict=True)
    )


def fit(examples, recipe, folder, on_epoch=None, model=None, way=FP32, train=None):
    model = model or make_model()
    train = train or take(examples, np.arange(0, 36))
    valid = take(examples, np.arange(36, 47))
    history = loop.fit(
        model, train, valid, recipe, way=way, fold_dir=folder, on_epoch=on_epoch
    )
    return model, history


def equal_weights(one, two):
    return all(
        torch.equal(a, b)
        for a, b in zip(
            one.state_dict().values(), two.state_dict().values(), strict=True
        )
    )


def test_sixteen_pictures_can_be_overfitted(examples, tmp_path):
    few = take(examples, np.arange(16))
    recipe = make(augment="none", epochs=25, lr=0.01)
    _, history = fit(examples, recipe, tmp_path, train=few)
    assert history["train_loss"].iloc[0] > 1.0
    assert history["train_loss"].iloc[-1] < 0.1


def test_f48_two_seeded_fits_are_bit_equal_and_another_seed_is_not(examples, tmp_path):
    one, first = fit(examples, make(), tmp_path / "a")
    two, second = fit(examples, make(), tmp_path / "b")
    assert equal_weights(one, two)
    assert first["train_loss"].tolist() == second["train_loss"].tolist()
    other, _ = fit(examples, make(seed=1), tmp_path / "c")
    assert not equal_weights(one, other)


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"mixup_alpha": 0.4}])
def test_f41_a_killed_run_ends_with_the_same_numbers(examples, tmp_path, changes):
    recipe = make(epochs=3, **changes)
    whole, expected = fit(examples, recipe, tmp_path / "whole")

    def kill(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(examples, recipe, tmp_path / "killed", kill)
    resumed, history = fit(examples, recipe, tmp_path / "killed")
    assert equal_weights(whole, resumed)
    columns = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "lr"]
    pd.testing.assert_frame_equal(history[columns], expected[columns])


def test_f42_a_damaged_checkpoint_falls_back_to_the_one_before(
    examples, tmp_path, capsys
):
    recipe = make(epochs=3)
    whole, _ = fit(examples, recipe, tmp_path / "whole")

    def kill(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(examples, recipe, tmp_path / "k", kill)
    newest = tmp_path / "k" / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    seen = []
    resumed, _ = fit(
        examples, recipe, tmp_path / "k", lambda r: seen.append(r["epoch"])
    )
    assert "checkpoint.pt is damaged" in capsys.readouterr().out
    assert seen == [2, 3]
    assert equal_weights(whole, resumed)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"lr": 0.001}, "recipe.lr 0.003 → 0.001"), ({"epochs": 4}, "recipe.epochs")],
)
def test_f41_a_resume_with_another_recipe_is_refused(examples, tmp_path, change, named):
    def kill(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(examples, make(), tmp_path, kill)
    with pytest.raises(ValueError, match=named):
        fit(examples, make(**change), tmp_path)


def test_f41_a_resume_with_other_rows_or_model_is_refused(examples, tmp_path):
    def kill(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(examples, make(), tmp_path, kill)
    with pytest.raises(ValueError, match="differs in training pictures"):
        fit(examples, make(), tmp_path, train=take(examples, np.arange(1, 36)))
    workspace.seed_everything(0)
    other = timm.create_model("test_vit", num_classes=4, img_size=32)
    with pytest.raises(ValueError, match="differs in .*model"):
        fit(examples, make(), tmp_path, model=other)


def test_f39_a_loss_that_is_not_finite_stops_and_names_the_step(examples, tmp_path):
    recipe = make(lr=1e30, optimizer="sgd", warmup_epochs=0)
    with pytest.raises(FloatingPointError, match=r"epoch 1, step \d.*lower `lr`"):
        fit(examples, recipe, tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_the_schedule_counts_updates_not_epochs(examples, tmp_path):
    _, cosine = fit(examples, make(epochs=4, warmup_epochs=1), tmp_path / "cosine")
    assert cosine["lr"].iloc[0] == pytest.approx(
        0.003 * (1 + math.cos(math.pi / 4)) / 2, rel=0.2
    )
    assert cosine["lr"].iloc[-1] == pytest.approx(0, abs=1e-6)
    _, step = fit(examples, make(epochs=5, schedule="step"), tmp_path / "step")
    assert step["lr"].tolist() == pytest.approx([3e-3, 3e-3, 3e-4, 3e-5, 3e-5])
    _, flat = fit(examples, make(schedule="constant"), tmp_path / "flat")
    assert flat["lr"].tolist() == pytest.approx([3e-3, 3e-3])


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulation_equals_the_whole_batch_without_batch_norm(
    examples, tmp_path, parts
):
    rows = take(examples, np.arange(35))  # the last batch has three pictures
    recipe = make(mixup_alpha=0.3, cutmix_alpha=0.3, optimizer="sgd", l1=1e-4)
    whole, expected = fit(
        examples, recipe, tmp_path / "whole", model=make_vit(), train=rows
    )
    split = dataclasses.replace(recipe, accumulate=parts)
    model, history = fit(
        examples, split, tmp_path / "parts", model=make_vit(), train=rows
    )
    np.testing.assert_allclose(history["train_loss"], expected["train_loss"], rtol=1e-5)
    assert close_weights(whole, model)


def test_f49_layer_decay_slows_the_first_layers(examples):
    state = loop._State(
        make_model(), take(examples, np.arange(36)), make(layer_decay=0.5), FP32, 0
    )
    state.schedule.step_update(4)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    assert min(rates) < 0.3 * max(rates)
    first = {id(w) for n, w in state.bare.named_parameters() if "conv1" in n[:5]}
    rate = {
        id(w): group["lr"]
        for group in state.optimizer.param_groups
        for w in group["params"]
    }
    assert {rate[key] for key in first if key in rate} <= {min(rates)}


def test_f50_the_average_of_a_short_run_is_not_random(examples, tmp_path):
    plain, _ = fit(examples, make(epochs=8, lr=0.01), tmp_path / "plain")
    averaged, history = fit(
        examples, make(epochs=8, lr=0.01, ema_decay=0.999), tmp_path / "ema"
    )
    assert not equal_weights(plain, averaged)
    assert history["valid_loss"].iloc[-1] < history["valid_loss"].iloc[0]


def test_frozen_training_changes_the_classifier_alone(examples, tmp_path):
    before = {name: value.clone() for name, value in make_model().state_dict().items()}
    model, _ = fit(examples, make(frozen=True), tmp_path)
    changed = [
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert changed == ["fc.weight", "fc.bias"]


def test_best_keeps_the_weights_of_the_best_epoch(examples, tmp_path):
    model, history = fit(examples, make(epochs=4, lr=0.05, keep="best"), tmp_path)
    valid = take(examples, np.arange(36, 47))
    loader = datasets.make_loader(
        datasets.SketchDataset(valid, "none", 0), 16, workers=0, training=False
    )
    stats = loop.models.input_stats(model)
    scored = loop._validate(model, loader, FP32, stats, memory.Parts(16, 1))
    assert scored["valid_accuracy"] == history["valid_accuracy"].max()


def test_the_model_gets_its_own_forward_back(examples, tmp_path):
    way = compute.Compute("cpu", "bf16", "channels_last", 0.0)
    model, _ = fit(examples, make(epochs=1), tmp_path, way=way)
    assert model.forward.__func__ is type(model).forward
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_f40_an_odd_last_batch_goes_through_mixing(examples, tmp_path):
    rows = take(examples, np.arange(35))
    recipe = make(cutmix_alpha=1.0, mixup_alpha=0.2)
    _, history = fit(examples, recipe, tmp_path, train=rows)
    assert np.isfinite(history["train_loss"]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "`epochs` should be at least 1"),
        ({"batch_size": 1}, "`batch_size`"),
        ({"lr": float("nan")}, "`lr` should be over 0"),
        ({"warmup_epochs": 5}, "less than epochs"),
        ({"augment": "flop"}, "did you mean 'flip'"),
        ({"optimizer": "adamx"}, "one timm knows"),
        ({"keep": "first"}, "`keep`"),
        ({"label_smoothing": 1.5}, "`label_smoothing`"),
    ],
)
def test_f25_a_recipe_out_of_range_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        make(**wrong)


def test_curves_are_read_as_over_under_or_settled():
    def history(valid):
        return pd.DataFrame(
            {
                "fold": 0,
                "epoch": range(1, len(valid) + 1),
                "train_loss": 0.1,
                "valid_loss": valid,
            }
        )

    assert "Overfitting" in loop.read_curves(history([1, 0.5, 0.4, 0.5, 0.6, 0.7]))
    assert "Still learning" in loop.read_curves(history([2, 1.6, 1.3, 1.0, 0.8, 0.6]))
    assert "Settled" in loop.read_curves(history([2, 1, 0.6, 0.5, 0.5, 0.5]))
