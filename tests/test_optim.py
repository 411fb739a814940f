import math

import numpy as np
import pandas as pd
import pytest
import torch
from recipes import make
from torch.optim.lr_scheduler import OneCycleLR

from sketchlib.training import optim, recipe


def rates(recipe_made, updates=10, epochs=None):
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=recipe_made.lr)
    schedule = optim.make_schedule(optimizer, recipe_made, updates)
    found = []
    for update in range((epochs or recipe_made.epochs) * updates):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return np.array(found)


def test_one_cycle_is_torchs():
    made = rates(make(schedule="one_cycle", epochs=4, lr=0.1, warmup_epochs=0))
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    theirs = OneCycleLR(optimizer, 0.1, total_steps=40, cycle_momentum=False)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def test_restarts_begin_again_at_half_the_height():
    made = rates(make(schedule="restarts", cycles=3, epochs=6, lr=1.0, warmup_epochs=0))
    assert made[[0, 20, 40]].tolist() == pytest.approx([1, 0.5, 0.25])
    assert made[[10, 30, 50]].tolist() == pytest.approx([0.5, 0.25, 0.125])
    assert (np.diff(made[:20]) < 0).all()


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "adan", "adafactor"])
def test_optimisers_with_two_betas_get_them(name):
    made = optimizer_of(name).param_groups[0]
    wanted = (0.9, 0.95) if name in ("adamw", "lamb") else made.get("betas")
    assert made.get("betas") == wanted


def optimizer_of(name):
    recipe = make(optimizer=name, beta2=0.95)
    return optim.make_optimizer(torch.nn.Linear(2, 2), recipe, 0.1)


def test_a_long_warm_up_is_cut_to_two_fifths():
    made = rates(make(epochs=5, lr=1.0, warmup_epochs=30), epochs=6)
    assert made[:20].argmax() == 19 and made[21:].max() < made[20]


def test_cosine_ends_at_zero_and_warm_up_rises_to_the_peak():
    made = rates(make(epochs=5, lr=1.0, warmup_epochs=1), epochs=6)
    assert (np.diff(made[:10]) > 0).all()
    assert made.max() == pytest.approx(made[10], rel=0.1)
    assert made[50] == pytest.approx(0, abs=1e-9)


def history(losses):
    return [{"valid_loss": loss, "train_loss": 1.0} for loss in losses]


def test_plateau_lowers_the_rate_after_its_patience_and_needs_no_state():
    made = make(schedule="plateau", plateau_epochs=2, epochs=9)
    rows = history([3, 2, 2, 2, 1, 1, 1, 1])
    factors = [optim.find_factor(made, epoch, rows) for epoch in range(9)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    unheld = [{"valid_loss": math.nan, "train_loss": 1.0}] * 4
    assert optim.find_factor(made, 4, unheld) < 1


def test_a_curriculum_lowers_the_rate_at_each_change():
    made = make(curriculum=["2:none:0.5", "4:affine_boxes:0.1"], epochs=5)
    found = [optim.find_factor(made, epoch, []) for epoch in range(5)]
    assert found == [1, 0.5, 0.5, 0.1, 0.1]


def test_sam_climbs_rho_up_the_gradient_and_comes_back():
    layer = torch.nn.Linear(4, 3)
    layer(torch.ones(2, 4)).pow(2).sum().backward()
    before = [weight.detach().clone() for weight in layer.parameters()]
    grads = [weight.grad.clone() for weight in layer.parameters()]
    with optim.perturbed(list(layer.parameters()), 0.05):
        moves = [
            now.detach() - then
            for now, then in zip(layer.parameters(), before, strict=True)
        ]
        assert all(weight.grad is None for weight in layer.parameters())
    length = torch.cat([move.flatten() for move in moves]).norm()
    assert length == pytest.approx(0.05, rel=1e-4)
    ratio = moves[0].flatten() / grads[0].flatten()
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)
    for now, then in zip(layer.parameters(), before, strict=True):
        assert torch.equal(now, then)


def test_the_suggested_rate_is_where_the_loss_falls_most_steeply():
    rates = np.geomspace(1e-6, 1, 60)
    fall = 2 / (1 + np.exp(2 * (np.log10(rates) + 3))) + 0.5  # steepest at 1e-3
    curve = pd.DataFrame({"lr": rates, "loss": fall + np.maximum(rates - 0.1, 0) * 50})
    assert 4e-4 < optim.suggest_lr(curve) < 8e-3
    with pytest.raises(ValueError, match="set `find_lr` off and give `lr`"):
        optim.suggest_lr(pd.DataFrame({"lr": rates, "loss": 1 + rates}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "soft_f1", "accumulate": 2}, "figure of the whole batch"),
        ({"schedule": "one_cycle"}, "its own warm-up"),
        ({"schedule": "restarts", "cycles": 3}, "needs an epoch a cycle"),
        ({"sampler": "up", "class_weights": "inverse"}, "use one of the two"),
        ({"frozen": True, "layer_decay": 0.7}, "classifier alone"),
        ({"keep": "last_mean", "keep_epochs": 3}, "fewer `epochs`"),
    ],
)
def test_f25_settings_that_contradict_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"curriculum": ["2:none"]}, "`epoch:recipe:factor`"),
        ({"curriculum": ["3:none:1", "2:flip:1"]}, "rise from 1"),
        ({"curriculum": ["2:nonne:1"]}, "did you mean 'none'"),
        ({"curriculum": ["2:none:-1"]}, "over 0"),
        ({"progressive": ["1:8"]}, "at least 16 pixels"),
        ({"loss": "focl"}, "did you mean 'focal'"),
        ({"sampler": "downs"}, "did you mean 'down'"),
        ({"data_fraction": 0.0}, "`data_fraction` should be over 0"),
        ({"focal_gamma": -1.0}, "`focal_gamma`"),
    ],
)
def test_f25_changes_by_epoch_are_read_strictly(changes, words):
    with pytest.raises(ValueError, match=words):
        make(**changes)


def test_stages_join_the_curriculum_and_the_growing_side():
    made = make(curriculum=["3:none:0.5"], progressive=["1:24", "5:28"], epochs=6)
    stages = recipe.make_stages(made)
    assert [(s.epoch, s.augment, s.factor, s.side_px) for s in stages] == [
        (0, "flip", 1.0, 24),
        (2, "none", 0.5, 24),
        (4, "none", 0.5, 28),
    ]
    recipe.check_sides(made, 32, fixed=False)
    with pytest.raises(ValueError, match="takes one size only"):
        recipe.check_sides(made, 32, fixed=True)
    with pytest.raises(ValueError, match="stay within `side_px`"):
        recipe.check_sides(made, 26, fixed=False)


def test_fewer_epochs_keep_a_valid_recipe_and_the_order_of_its_changes():
    made = make(
        epochs=10,
        schedule="restarts",
        cycles=5,
        keep="best_mean",
        keep_epochs=4,
        curriculum=["4:none:0.5", "8:flip:0.1"],
    )
    for epochs in range(1, 11):
        short = recipe.with_epochs(made, epochs)
        assert short.epochs == epochs
    half = recipe.make_stages(recipe.with_epochs(made, 5))
    assert [(s.epoch, s.augment) for s in half] == [
        (0, "flip"),
        (2, "none"),
        (4, "flip"),
    ]


def rows(losses, accuracies):
    return [
        {"valid_loss": loss, "valid_accuracy": accuracy}
        for loss, accuracy in zip(losses, accuracies, strict=True)
    ]


def test_stopping_depends_on_the_history_alone():
    patient = make(patience=2, epochs=9)
    assert recipe.find_stop(patient, rows([3, 2, 2.5], [0, 0, 0])) == ""
    stopped = recipe.find_stop(patient, rows([3, 2, 2.5, 2.1], [0, 0, 0, 0]))
    assert stopped == "no lower held-out loss for 2 epochs"
    target = make(target_accuracy=0.5, target_epochs=2, epochs=9)
    assert recipe.find_stop(target, rows([3], [0.1])) == ""
    assert recipe.find_stop(target, rows([3, 2], [0.1, 0.6])) == ""
    assert "below the target" in recipe.find_stop(target, rows([3, 2], [0.1, 0.4]))
    unheld = rows([math.nan] * 5, [math.nan] * 5)
    assert recipe.find_stop(make(patience=1), unheld) == ""
