import pytest
import timm
import torch
from torch import nn

from sketchlib.training import heads, kernels


def gradients(conv, x):
    x = x.clone().requires_grad_()
    conv.zero_grad()
    y = conv(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(weight.grad.clone() for weight in conv.parameters())]


@pytest.mark.parametrize("side", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
@pytest.mark.parametrize("padding", ["half", "none"])
def test_gradients_equal_torchs(side, stride, size, padding):
    generator = torch.Generator().manual_seed(side)
    pad = side // 2 if padding == "half" else 0
    conv = nn.Conv2d(6, 6, side, stride, pad, groups=6).double()
    x = torch.randn(3, 6, *size, generator=generator, dtype=torch.float64)
    expected = gradients(conv, x)
    assert kernels.use_blocks(conv) == 1
    for found, wanted in zip(gradients(conv, x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_padding_of_tensorflow_is_kept():
    model = timm.create_model("tf_efficientnet_lite0", num_classes=3).eval()
    x = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    before, keys = model(x), list(model.state_dict())
    assert kernels.use_blocks(model) == 16
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 6, 3),
        nn.Conv2d(6, 12, 3, groups=6),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2),
        nn.Conv2d(6, 6, (3, 5), groups=6),
        nn.Conv2d(6, 6, 3, stride=3, groups=6),
        nn.Conv2d(6, 6, 3, groups=6, padding="same"),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"),
    ],
)
def test_what_does_not_fit_is_left_alone(conv):
    kind = type(conv)
    assert kernels.use_blocks(conv) == kernels.count_depthwise(conv) == 0
    assert type(conv) is kind


@pytest.fixture
def used():
    """A network whose norms have seen pictures and have learnt."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32))
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_folding_changes_no_output_and_can_be_undone(used):
    x, keys = torch.randn(2, 3, 40, 40), list(used.state_dict())
    before, layers = used(x), norms(used)
    folded = kernels.Folded(used, kernels.make_sample(32))
    assert len(folded) == layers and norms(used) == 0
    torch.testing.assert_close(used(x), before, rtol=1e-4, atol=1e-5)
    folded.restore()
    assert norms(used) == layers and list(used.state_dict()) == keys
    torch.testing.assert_close(used(x), before, rtol=1e-4, atol=1e-5)


def test_what_was_learnt_while_folded_stays_after_the_way_back(used):
    x = torch.randn(2, 3, 40, 40)
    folded = kernels.Folded(used, kernels.make_sample(32))
    with torch.no_grad():
        for weight in used.parameters():
            weight.add_(0.01)
    learnt = used(x)
    folded.restore()
    torch.testing.assert_close(used(x), learnt, rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """A norm that stands after one convolution and is used after another."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.running_mean.add_(1.0)

    def forward(self, x):
        return self.first(self.norm(x)).mean((2, 3))


def test_a_network_that_would_change_is_left_alone():
    model = Shared().eval()
    x, keys = torch.randn(2, 3, 8, 8), list(model.state_dict())
    before = model(x)
    assert len(kernels.Folded(model, kernels.make_sample(8))) == 0
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == keys


def test_a_network_without_norms_has_nothing_to_fold():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert len(kernels.Folded(model, kernels.make_sample(8))) == 0


def test_inference_leaves_the_model_itself_alone(used):
    x, layers = torch.randn(2, 3, 40, 40), norms(used)
    quick = kernels.fold_for_inference(used, 32)
    assert (norms(quick), norms(used)) == (0, layers)
    torch.testing.assert_close(quick(x), used(x), rtol=1e-4, atol=1e-5)


def test_inference_without_norms_costs_no_copy():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert kernels.fold_for_inference(model, 8) is model


def test_what_is_frozen_stays_frozen_when_folded(used):
    heads.freeze_backbone(used, 1)
    kernels.Folded(used, kernels.make_sample(32))
    learning = {name for name, w in used.named_parameters() if w.requires_grad}
    stages = {".".join(name.split(".")[:2]) for name in learning}
    assert "blocks.4" in stages
    assert not any(f"blocks.{number}" in stages for number in range(4))
    assert "conv_stem.bias" not in learning
