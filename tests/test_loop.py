import contextlib
import dataclasses
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from recipes import FP32, make

from sketchlib import workspace
from sketchlib.analysis import curves
from sketchlib.data import cache, manifest
from sketchlib.training import checkpoints, compute, datasets, loop, memory


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


TIMELESS = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "lr"]


def fit(
    examples,
    recipe,
    folder,
    on_epoch=None,
    model=None,
    way=FP32,
    train=None,
    save_minutes=0.0,
):
    model = model or make_model()
    train = train or take(examples, np.arange(0, 36))
    valid = take(examples, np.arange(36, 47))
    history = loop.fit(
        model,
        train,
        valid,
        recipe,
        way=way,
        fold_dir=folder,
        on_epoch=on_epoch,
        save_minutes=save_minutes,
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


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema_decay": 0.9},
        {"mixup_alpha": 0.4},
        {"keep": "best_mean"},
        {"sam_rho": 0.05, "schedule": "plateau", "sampler": "weighted"},
    ],
)
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
    pd.testing.assert_frame_equal(history[TIMELESS], expected[TIMELESS])


class Killed(BaseException):
    """Stands in for a kill: nothing in the loop may catch it."""


@pytest.mark.parametrize("calls", [1, 3, 7, 10, 13])
def test_f41_a_kill_inside_an_epoch_continues_exactly(
    examples, tmp_path, calls, monkeypatch
):
    recipe = make(epochs=3, mixup_alpha=0.4, ema_decay=0.9, norm="learn")
    whole, expected = fit(examples, recipe, tmp_path / "whole")
    real, count = loop._update, itertools.count(1)

    def update(*arguments):
        if next(count) == calls:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(loop, "_update", update)
    with pytest.raises(Killed):
        fit(examples, recipe, tmp_path / "killed", save_minutes=1e-9)
    seen = []
    resumed, history = fit(examples, recipe, tmp_path / "killed", seen.append)
    assert equal_weights(whole, resumed)
    pd.testing.assert_frame_equal(history[TIMELESS], expected[TIMELESS])
    done = (calls - 1) // 5  # whole epochs of five updates
    assert [row["epoch"] for row in seen] == [1, 2, 3][done:]
    assert next(count) == calls + 1 + 15 - (calls - 1)  # no update was done twice


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
    named = workspace.read_json(tmp_path / "bad_batch.json")
    assert named["epoch"] == 1
    assert len(named["image_ids"]) == 8
    assert set(named["image_ids"]) <= set(examples.image_ids)


def poison(monkeypatch, calls):
    """Make the loss NaN at these updates."""
    real, count = loop._accumulate, itertools.count(1)

    def accumulate(*arguments):
        loss = real(*arguments)
        return math.nan if next(count) in calls else loss

    monkeypatch.setattr(loop, "_accumulate", accumulate)


def test_f39_a_retry_goes_back_and_on_at_a_tenth_of_the_rate(
    examples, tmp_path, monkeypatch, capsys
):
    recipe = make(epochs=3, retry_nan=True, schedule="constant", keep="best")
    poison(monkeypatch, {8})
    _, history = fit(examples, recipe, tmp_path / "once")
    assert "going on from the last checkpoint" in capsys.readouterr().out
    assert history["lr"].tolist() == pytest.approx([3e-3, 3e-4, 3e-4])
    assert np.isfinite(history["train_loss"]).all()
    poison(monkeypatch, {8, 15})
    with pytest.raises(FloatingPointError, match="epoch 3, step 2"):
        fit(examples, recipe, tmp_path / "twice")
    for path in (tmp_path / "twice").glob("weights-*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in state.values())


def test_f39_weights_that_break_in_the_last_step_are_no_checkpoint(
    examples, tmp_path, monkeypatch
):
    real = loop._update

    def update(state, *arguments):
        loss = real(state, *arguments)
        state.bare.fc.bias.data[0] = math.nan
        return loss

    monkeypatch.setattr(loop, "_update", update)
    few = take(examples, np.arange(8))  # one update an epoch: its loss is finite
    with pytest.raises(FloatingPointError, match=r"1 weights are not, first fc.bias"):
        fit(examples, make(keep="best"), tmp_path, train=few)
    assert not list(tmp_path.glob("*.pt"))


def run_out(monkeypatch, most, cases):
    """A model that fails on more than `most` pictures, in the named modes."""
    real = type(make_vit()).forward

    def forward(self, images):
        if len(images) > most and self.training in cases:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(self, images)

    monkeypatch.setattr(type(make_vit()), "forward", forward)


@pytest.mark.parametrize("first", [1, 6])
def test_f38_out_of_memory_makes_smaller_parts_of_the_same_update(
    examples, tmp_path, monkeypatch, capsys, first
):
    recipe = make(mixup_alpha=0.3, optimizer="sgd")
    whole, expected = fit(examples, recipe, tmp_path / "whole", model=make_vit())
    real, count = loop._update, itertools.count(1)

    def update(*arguments):
        if next(count) == first:
            run_out(monkeypatch, 3, {True})
        return real(*arguments)

    monkeypatch.setattr(loop, "_update", update)
    model, history = fit(examples, recipe, tmp_path / "oom", model=make_vit())
    told = capsys.readouterr().out
    assert "with 8 pictures at once; going on with 4" in told
    assert "with 4 pictures at once; going on with 2" in told
    np.testing.assert_allclose(history["train_loss"], expected["train_loss"], rtol=1e-5)
    assert history["lr"].tolist() == expected["lr"].tolist()
    assert close_weights(whole, model)


def test_f38_out_of_memory_in_scoring_changes_no_score(
    examples, tmp_path, monkeypatch, capsys
):
    _, expected = fit(examples, make(), tmp_path / "whole", model=make_vit())
    run_out(monkeypatch, 4, {False})
    _, history = fit(examples, make(), tmp_path / "oom", model=make_vit())
    assert "scoring ran out of memory" in capsys.readouterr().out
    np.testing.assert_allclose(history["valid_loss"], expected["valid_loss"], rtol=1e-5)


def test_f38_too_little_memory_for_anything_is_said_and_others_pass(
    examples, tmp_path, monkeypatch
):
    run_out(monkeypatch, 0, {True})
    with pytest.raises(MemoryError, match="smaller `side_px` or `model`"):
        fit(examples, make(), tmp_path / "none", model=make_vit())
    parts = memory.Parts(8, 1)
    with pytest.raises(RuntimeError, match="shape"):
        parts.shrink(RuntimeError("shape mismatch"), 8, "training")


@pytest.mark.parametrize(
    ("size", "limit", "least", "sizes"),
    [
        (8, 8, 1, [8]),
        (7, 4, 2, [4, 3]),
        (3, 2, 2, [3]),  # never a part of one for batch norm
        (5, 1, 1, [1] * 5),
        (1, 4, 2, [1]),
    ],
)
def test_parts_cover_a_batch_and_are_never_too_small(size, limit, least, sizes):
    parts = memory.Parts(limit, least).split(size)
    assert sorted((part.stop - part.start for part in parts), reverse=True) == sizes
    assert parts[0].start == 0
    assert parts[-1].stop == size


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
    valid = take(examples, np.arange(36, 47))
    loader = datasets.make_loader(
        datasets.SketchDataset(valid, "none", 0), 16, workers=0, training=False
    )
    stats = loop.models.input_stats(plain)
    own = loop._validate(plain, loader, FP32, stats, memory.Parts(16, 1))
    assert history["valid_loss"].iloc[-1] < history["valid_loss"].iloc[0]
    assert abs(history["valid_accuracy"].iloc[-1] - own["valid_accuracy"]) < 0.3


def test_scoring_fewer_pictures_changes_nothing_but_the_score(examples, tmp_path):
    whole, history = fit(examples, make(epochs=2), tmp_path / "whole")
    recipe = make(epochs=2, score_fraction=0.5)
    model, fewer = fit(examples, recipe, tmp_path / "fewer")
    assert equal_weights(whole, model)
    assert fewer["train_loss"].tolist() == history["train_loss"].tolist()
    valid = take(examples, np.arange(36, 47))
    few = [list(loop._make_valid_loader(valid, recipe)) for _ in range(2)]
    places = [torch.cat([batch[2] for batch in one]).tolist() for one in few]
    assert places[0] == places[1] == list(range(round(0.5 * len(valid.rows))))
    seen = torch.cat([batch[1] for batch in few[0]]).tolist()
    assert set(seen) <= set(valid.labels.tolist())
    hits = fewer["valid_accuracy"] * len(seen)
    assert np.allclose(hits, hits.round(), atol=1e-6)


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


def test_the_mean_of_the_last_epochs_is_their_mean(examples, tmp_path):
    states = []
    recipe = make(epochs=4, keep="last_mean", keep_epochs=2, norm="still")
    model = make_model()

    def remember(row):
        states.append({key: value.clone() for key, value in model.state_dict().items()})

    fit(examples, recipe, tmp_path, remember, model=model)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            expected = (states[2][key] + states[3][key]) / 2
            assert torch.allclose(value, expected, atol=1e-7), key


def test_averaged_weights_get_batch_norm_statistics_of_their_own(examples, tmp_path):
    recipe = make(epochs=3, keep="last_mean", lr=0.02)
    model, _ = fit(examples, recipe, tmp_path)
    loader = datasets.make_loader(
        datasets.SketchDataset(take(examples, np.arange(36)), "flip", 0),
        36,
        workers=0,
        training=True,
    )
    loader.batch_sampler.sampler.epoch = 3
    images = datasets.to_input(next(iter(loader))[0], *loop.models.input_stats(model))
    seen = model.conv1(images).mean((0, 2, 3)) if hasattr(model, "conv1") else None
    assert seen is not None
    assert torch.allclose(model.bn1.running_mean, seen, atol=2e-2)


@pytest.mark.parametrize(
    ("keep", "chosen"),
    [("last", set()), ("best", {4}), ("last_mean", {3, 4}), ("best_mean", {2, 4})],
)
def test_the_epochs_that_are_kept(keep, chosen):
    rows = [{"valid_accuracy": score} for score in (0.1, 0.9, 0.5, 0.9)]
    assert checkpoints.choose_epochs(rows, make(epochs=4, keep=keep)) == chosen
    unheld = [{"valid_accuracy": math.nan}] * 4
    if chosen:
        last = max(chosen)
        assert last in checkpoints.choose_epochs(unheld, make(epochs=4, keep=keep))


def test_sam_of_radius_zero_is_the_optimiser_itself(examples, tmp_path, monkeypatch):
    plain, _ = fit(examples, make(), tmp_path / "plain", model=make_vit())
    monkeypatch.setattr(loop.optim, "perturbed", still)
    twice, _ = fit(examples, make(sam_rho=0.1), tmp_path / "zero", model=make_vit())
    assert equal_weights(plain, twice)
    monkeypatch.undo()
    sam, history = fit(examples, make(sam_rho=0.1), tmp_path / "sam", model=make_vit())
    assert not equal_weights(plain, sam)
    assert np.isfinite(history["train_loss"]).all()


@contextlib.contextmanager
def still(parameters, rho):
    """The ascent of SAM with a radius of zero: forget the gradients, stay."""
    for weight in parameters:
        weight.grad = None
    yield


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": "soft_f1", "batch_size": 12},
        {"loss": "bce"},
        {"optimizer": "sgd", "lr": 0.05},
        {"optimizer": "radam"},
        {"schedule": "one_cycle", "warmup_epochs": 0},
        {"schedule": "restarts"},
        {"sam_rho": 0.02},
        {"progressive": ["1:24"], "epochs": 24, "lr": 0.005},
    ],
)
def test_every_choice_learns_a_few_pictures(examples, tmp_path, changes):
    few = take(examples, np.arange(24))
    recipe = make(**({"augment": "none", "epochs": 14, "lr": 0.01} | changes))
    model, _ = fit(examples, recipe, tmp_path, train=few)
    loader = datasets.make_loader(
        datasets.SketchDataset(few, "none", 0), 24, workers=0, training=False
    )
    stats = loop.models.input_stats(model)
    scored = loop._validate(model, loader, FP32, stats, memory.Parts(24, 1))
    assert scored["valid_accuracy"] > 0.7


def test_growing_pictures_are_small_first_and_scored_whole(
    examples, tmp_path, monkeypatch
):
    sides = []
    real = loop.datasets.to_input

    def to_input(images, mean, std):
        sides.append(images.shape[-1])
        return real(images, mean, std)

    monkeypatch.setattr(loop.datasets, "to_input", to_input)
    fit(examples, make(epochs=3, progressive=["1:16", "2:24", "3:32"]), tmp_path)
    assert list(dict.fromkeys(sides)) == [16, 32, 24]
    with pytest.raises(ValueError, match="takes one size only"):
        fit(examples, make(progressive=["1:16"]), tmp_path / "vit", model=make_vit())


def test_patience_and_target_end_a_fold_early_and_say_so(examples, tmp_path, capsys):
    still_lr = {"lr": 1e-9, "optimizer": "sgd", "norm": "still", "epochs": 6}
    _, history = fit(examples, make(patience=2, **still_lr), tmp_path / "patience")
    assert len(history) < 6
    _, history = fit(
        examples,
        make(target_accuracy=0.99, target_epochs=2, **still_lr),
        tmp_path / "target",
    )
    assert len(history) == 2
    assert "below the target" in capsys.readouterr().out


def test_on_epoch_may_stop_a_fold_and_its_checkpoint_stays(examples, tmp_path):
    def stop(row):
        raise loop.Stopped("not worth it")

    with pytest.raises(loop.Stopped):
        fit(examples, make(epochs=3), tmp_path, stop)
    seen = []
    fit(examples, make(epochs=3), tmp_path, lambda row: seen.append(row["epoch"]))
    assert seen == [2, 3]


def test_pictures_of_weight_zero_teach_nothing(examples, tmp_path):
    rows = np.arange(36)
    weights = np.where(rows % 8 == 0, 0.0, 1.0)
    train = take(examples, rows)
    wrong = np.where(weights == 0, (train.labels + 1) % 4, train.labels)
    recipe = make(optimizer="sgd", norm="still")
    one, two = (
        fit(
            examples,
            recipe,
            tmp_path / name,
            train=datasets.Examples(train.pixels, train.rows, labels, weights),
        )[0]
        for name, labels in (("right", train.labels), ("wrong", wrong))
    )
    assert close_weights(one, two, atol=1e-6)


def test_the_rate_finder_leaves_the_model_alone_and_finds_a_rate(examples):
    model = make_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train = take(examples, np.arange(36))
    curve = loop.find_lr(model, train, make(optimizer="sgd"), FP32)
    assert all(
        torch.equal(value, before[key]) for key, value in model.state_dict().items()
    )
    steps = np.diff(np.log(curve["lr"]))
    np.testing.assert_allclose(steps, steps[0])
    assert 1e-6 < loop.optim.suggest_lr(curve) < 1.0


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


@pytest.mark.parametrize("rows", [9, 5, 2])
def test_f40_a_class_that_is_missing_and_tiny_batches_train(examples, tmp_path, rows):
    train = take(examples, np.flatnonzero(examples.labels != 3)[:rows])
    _, history = fit(examples, make(batch_size=4, accumulate=3), tmp_path, train=train)
    assert np.isfinite(history["train_loss"]).all()
    assert np.isfinite(history["valid_loss"]).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"epochs": 0}, "`epochs` should be at least 1"),
        ({"batch_size": 1}, "`batch_size`"),
        ({"lr": float("nan")}, "`lr` should be over 0"),
        ({"warmup_epochs": -1}, "`warmup_epochs` should be 0 or more"),
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

    assert "Overfitting" in curves.read_curves(history([1, 0.5, 0.4, 0.5, 0.6, 0.7]))
    assert "Still learning" in curves.read_curves(history([2, 1.6, 1.3, 1.0, 0.8, 0.6]))
    assert "Settled" in curves.read_curves(history([2, 1, 0.6, 0.5, 0.5, 0.5]))


def test_a_mean_over_folds_of_other_lengths_ends_at_all_their_ends():
    short = [2, 1, 0.9, 0.9, 0.9, 0.9]
    long = [2, 1.2, 1.0, 0.8, 0.7, 0.6, 0.5, 0.5, 0.5, 0.5]
    history = pd.concat(
        pd.DataFrame(
            {
                "fold": fold,
                "epoch": range(1, len(valid) + 1),
                "train_loss": 0.1,
                "valid_loss": valid,
            }
        )
        for fold, valid in enumerate([short, long])
    )
    aligned = curves.align_folds(history, "valid_loss")
    assert aligned.shape == (10, 2)
    assert aligned[1].tolist() == long
    assert aligned.iloc[[0, -1]].to_numpy().tolist() == [[2, 2], [0.9, 0.5]]
    assert "Settled" in curves.read_curves(history)  # not 0.7 → 0.5, another's end
    figure = curves.plot_history(history)
    assert figure.axes[0].get_xlabel() == "epoch of the longest fold, others stretched"
    (text,) = [
        one.get_text() for one in figure.axes[0].texts if "valid" in one.get_text()
    ]
    assert text.strip() == "validation 0.700"
    plt.close(figure)
