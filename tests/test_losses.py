import numpy as np
import pytest
import torch
from recipes import make
from sklearn.metrics import f1_score
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch.nn import functional

from sketchlib.training import losses
from sketchlib.training.recipe import LOSSES

ONES = torch.ones(8)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 4, generator=generator)
    return logits, torch.tensor([0, 1, 2, 3, 0, 1, 2, 2])


def make_loss(**changes):
    return losses.Loss(make(**changes), torch.ones(4))


def perfect(targets):
    return functional.one_hot(targets, 4).float() * 100


def test_cross_entropy_is_torchs_and_smoothing_is_timms(batch):
    logits, targets = batch
    made = make_loss()(logits, targets, ONES)
    assert made == pytest.approx(functional.cross_entropy(logits, targets).item())
    smooth = make_loss(label_smoothing=0.3)(logits, targets, ONES)
    expected = LabelSmoothingCrossEntropy(0.3)(logits, targets)
    assert smooth == pytest.approx(expected.item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_of_gamma_zero_is_cross_entropy(batch, smoothing):
    focal = make_loss(loss="focal", focal_gamma=0.0, label_smoothing=smoothing)
    plain = make_loss(label_smoothing=smoothing)
    assert focal(*batch, ONES) == pytest.approx(plain(*batch, ONES).item())


def test_focal_turns_down_what_is_easy(batch):
    easy, hard = torch.tensor([[4.0, 0, 0, 0]]), torch.tensor([[0.0, 1, 0, 0]])
    target, one = torch.tensor([0]), torch.ones(1)
    focal, plain = make_loss(loss="focal"), make_loss()
    for logits in (easy, hard):
        p = logits.softmax(1)[0, 0]
        ratio = focal(logits, target, one) / plain(logits, target, one)
        assert ratio == pytest.approx((1 - p).item() ** 2, rel=1e-4)


def test_bce_is_timms(batch):
    made = make_loss(loss="bce", label_smoothing=0.1)(*batch, ONES)
    assert made == pytest.approx(BinaryCrossEntropy(0.1)(*batch).item(), rel=1e-5)


def test_soft_f1_of_certain_answers_is_one_minus_macro_f1(batch):
    _, targets = batch
    guessed = torch.tensor([0, 1, 2, 3, 1, 1, 0, 2])
    loss = make_loss(loss="soft_f1")
    assert loss(perfect(targets), targets, ONES) == pytest.approx(0, abs=1e-6)
    expected = 1 - f1_score(targets, guessed, average="macro")
    assert loss(perfect(guessed), targets, ONES) == pytest.approx(expected, abs=1e-6)


def test_soft_f1_leaves_out_classes_that_are_not_in_the_batch():
    targets = torch.tensor([0, 1])
    loss = make_loss(loss="soft_f1")(perfect(targets), targets, torch.ones(2))
    assert loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_weight_of_zero_leaves_a_picture_out(batch, name):
    logits, targets = batch
    loss = make_loss(loss=name)
    weights = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0])
    without = loss(logits[:6], targets[:6], torch.ones(6))
    if name != "soft_f1" or set(targets[:6].tolist()) == set(targets.tolist()):
        assert loss(logits, targets, weights) == pytest.approx(without.item(), rel=1e-5)


def test_mixed_targets_are_the_mixture_of_losses(batch):
    logits, targets = batch
    shares = 0.3 * functional.one_hot(targets, 4) + 0.7 * functional.one_hot(
        targets.flip(0), 4
    )
    loss = make_loss()
    mixed = 0.3 * loss(logits, targets, ONES) + 0.7 * loss(
        logits, targets.flip(0), ONES
    )
    assert loss(logits, shares, ONES) == pytest.approx(mixed.item(), rel=1e-5)


def test_class_weights_are_scikit_learns_and_one_for_equal_classes():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    made = losses.make_class_weights(labels, 3, "inverse").numpy()
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    for kind in ("none", "inverse", "effective"):
        equal = losses.make_class_weights(np.arange(3), 3, kind)
        np.testing.assert_allclose(equal, np.ones(3), rtol=1e-5)
    effective = losses.make_class_weights(labels, 3, "effective").numpy()
    assert effective[0] < effective[1] < effective[2]
    assert (effective[labels]).mean() == pytest.approx(1, rel=1e-5)


def test_penalties_are_the_norms_of_what_is_trained():
    layer = torch.nn.Linear(3, 2, bias=False)
    frozen = torch.nn.Parameter(torch.full((5,), 9.0), requires_grad=False)
    values = layer.weight.detach().numpy()
    made = make_loss(l1=0.5, l2=0.2).penalty([layer.weight, frozen])
    expected = 0.5 * np.abs(values).sum() + 0.1 * (values**2).sum()
    assert float(made) == pytest.approx(expected, rel=1e-5)
    assert make_loss().penalty([layer.weight]) == 0
