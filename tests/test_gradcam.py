"""Maps come from every family of models, point at the cause, and leave no trace."""

import cv2
import numpy as np
import pytest
import timm
import torch
from torch import nn

from sketchlib.analysis import gradcam, rollout, sheets

# Tiny members of the families that DESIGN and issue 6 name; (H, W) in px.
MODELS = {
    "resnet10t": (64, 64),
    "efficientnet_lite0": (64, 96),
    "convnext_atto": (64, 64),
    "regnety_002": (96, 64),
    "mobilenetv4_conv_small": (64, 64),
    "vit_tiny_patch16_224": (64, 96),
    "vit_little_patch16_reg4_gap_256": (64, 64),
    "vit_base_patch16_siglip_gap_224": (64, 64),
    "vit_small_patch16_dinov3": (96, 64),
    "eva02_tiny_patch14_224": (56, 84),
    "swin_tiny_patch4_window7_224": (64, 128),
    "coatnet_nano_rw_224": (64, 64),
}
RESIZED = ("vit", "eva02", "swin", "coatnet")  # their size is fixed when they are made
SHALLOW = ("vit", "eva02")


@pytest.fixture(autouse=True)
def one_thread():
    """Five engineers share two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def make_model(name):
    """A model with random weights and four classes; ViTs with two blocks."""
    side = {"img_size": MODELS[name]} if name.startswith(RESIZED) else {}
    if name.startswith("coatnet"):
        side = {"img_size": MODELS[name][0]}
    depth = {"depth": 2} if name.startswith(SHALLOW) else {}
    return timm.create_model(name, pretrained=False, num_classes=4, **side, **depth)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_maps_of_the_pictures_size(name):
    model = make_model(name).train()
    images = torch.randn(2, 3, *MODELS[name])
    cams = gradcam.make_cam(model, images, torch.tensor([1, 3]))
    assert cams.shape == (2, *MODELS[name])
    assert cams.dtype == np.float32
    assert cams.min() >= 0
    assert cams.max() == 1
    assert cams.std() > 0.05, "a map without contrast explains nothing"
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("method", gradcam.METHODS)
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_every_method_gives_maps(name, method):
    images = torch.randn(1, 3, *MODELS[name])
    cams = gradcam.make_cam(make_model(name), images, method=method)
    assert cams.shape == (1, *MODELS[name])
    assert cams.max() == 1


def test_without_targets_the_top_class_is_explained():
    model = make_model("resnet10t").eval()
    images = torch.randn(3, 3, 64, 64)
    top = model(images).argmax(dim=1)
    np.testing.assert_array_equal(
        gradcam.make_cam(model, images), gradcam.make_cam(model, images, top)
    )


def test_a_batch_is_its_pictures_one_by_one():
    model = make_model("resnet10t").eval()
    images, targets = torch.randn(3, 3, 64, 64), torch.tensor([0, 1, 2])
    whole = gradcam.make_cam(model, images, targets)
    for row in range(3):
        one = gradcam.make_cam(model, images[row : row + 1], targets[row : row + 1])
        np.testing.assert_allclose(one[0], whole[row], atol=1e-4)


def test_gradients_and_modes_the_caller_had_are_kept():
    model = make_model("resnet10t").train()
    model.layer1.eval().requires_grad_(False)
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    with torch.inference_mode():
        gradcam.make_cam(model, torch.randn(2, 3, 64, 64))
    assert model.training
    assert not model.layer1.training
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert (model.fc.weight.grad == 1).all()


# --- a model that learned to read a watermark ---------------------------------

CORNERS = ((4, 4), (4, 44), (44, 4), (44, 44))


def draw_marked(count, rng):
    """A drawing with a mark in a random corner: dark in class 0, grey in class 1."""
    images = 1 + 0.1 * rng.standard_normal((count, 3, 64, 64))
    images[:, :, 26:38, 20:44] = 0  # the drawing, the same in both classes
    labels = rng.integers(0, 2, count)
    masks = np.zeros((count, 64, 64), bool)
    for row, corner in enumerate(rng.integers(0, 4, count)):
        y, x = CORNERS[corner]
        masks[row, y : y + 16, x : x + 16] = True
        images[row, :, y : y + 16, x : x + 16] = 0 if labels[row] == 0 else 0.5
    return torch.tensor(images, dtype=torch.float32), torch.tensor(labels), masks


@pytest.fixture(scope="module")
def reader():
    """A small network trained on marked drawings until it reads the mark."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    model = timm.create_model("resnet10t", num_classes=2)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(45):
        images, labels, _ = draw_marked(16, rng)
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "layercam"])
def test_a_watermark_reader_is_found(reader, method):
    images, labels, masks = draw_marked(32, np.random.default_rng(1))
    assert (reader(images).argmax(dim=1) == labels).float().mean() > 0.9
    dark = labels == 0  # the other class is told by the lack of a dark mark
    cams = gradcam.make_cam(reader, images[dark], labels[dark], method)
    looked = np.nanmean(gradcam.region_share(cams, masks[dark.numpy()]))
    assert looked > 2.5 * masks.mean()


class TestAttentionOnInk:
    def test_shares_count_what_lies_where(self):
        picture = np.full((40, 40), 255, np.uint8)
        picture[:10] = 255
        picture[10:20, 5:35] = 0
        cam = np.zeros((1, 40, 40), np.float32)
        cam[0, 10:20, 5:35] = 1
        on_ink, ink = gradcam.ink_share(cam, picture[None])
        assert on_ink[0] == 1
        assert ink[0] == 300 / 1600
        on_ink, _ = gradcam.ink_share(np.ones_like(cam), picture[None])
        assert on_ink[0] == pytest.approx(ink[0]), "blind looking reaches ink's share"

    def test_light_ink_on_dark_paper_and_colour_count_as_well(self):
        picture = np.full((40, 40, 3), 30, np.uint8)
        picture[15:25, 15:25] = (250, 240, 90)
        assert gradcam.find_ink(picture).sum() == 100
        assert gradcam.find_ink(np.full((9, 9), 200, np.uint8)).sum() == 0

    def test_an_empty_map_has_no_share(self):
        shares = gradcam.region_share(np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool))
        assert np.isnan(shares[0])

    def test_maps_and_masks_of_other_sizes_are_refused(self):
        with pytest.raises(ValueError, match="should have the same shape"):
            gradcam.region_share(np.zeros((1, 4, 4)), np.zeros((1, 5, 5), bool))

    def test_the_map_lies_under_the_ink(self):
        picture = np.full((20, 20), 255, np.uint8)
        picture[8:12] = 0
        laid = sheets.lay_cam(picture, np.ones((5, 5)))
        assert (laid[8:12] == 0).all(), "ink stays black"
        red, green, blue = laid[0, 0]
        assert red > green > blue, "paper takes the colour, in RGB order"
        plain = sheets.lay_cam(picture, np.zeros((5, 5)))
        np.testing.assert_array_equal(plain[..., 0], picture)
        dark = sheets.lay_cam(255 - picture, np.ones((5, 5)))
        np.testing.assert_array_equal(dark, laid)


class TestRefusals:
    @pytest.fixture
    def model(self):
        return timm.create_model("resnet10t", num_classes=4).eval()

    def test_uint8_pictures(self, model):
        with pytest.raises(ValueError, match="normalised floats .*torch.uint8"):
            gradcam.make_cam(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))

    def test_an_unknown_method(self, model):
        with pytest.raises(ValueError, match="`method` should be one of .*'cam' came"):
            gradcam.make_cam(model, torch.zeros(1, 3, 32, 32), method="cam")

    def test_targets_of_another_length(self, model):
        with pytest.raises(ValueError, match="one class per image, 2, but has 1"):
            gradcam.make_cam(model, torch.zeros(2, 3, 32, 32), torch.tensor([0]))

    def test_a_class_that_is_not_there(self, model):
        """pytorch-grad-cam prints the IndexError and goes on; we do not."""
        with pytest.raises(ValueError, match="0 to 3, but 4 came"):
            gradcam.make_cam(model, torch.zeros(1, 3, 32, 32), torch.tensor([4]))
        assert not any(module._forward_hooks for module in model.modules())

    def test_weights_that_are_not_numbers(self, model):
        nn.init.constant_(model.fc.weight, float("nan"))
        with pytest.raises(ValueError, match="finite"):
            gradcam.make_cam(model, torch.randn(1, 3, 32, 32), torch.tensor([0]))

    def test_a_model_that_is_not_timms(self):
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        with pytest.raises(ValueError, match="Sequential names no last feature layer"):
            gradcam.make_cam(model, torch.randn(1, 3, 4, 4))

    def test_tokens_that_form_no_grid(self):
        with pytest.raises(ValueError, match="8 tokens, 1 of them prefix"):
            gradcam._fold_tokens(torch.zeros(1, 8, 3), 1, (64, 64))


ATTENTIVE = {
    "vit_tiny_patch16_224": (64, 96),
    "vit_little_patch16_reg4_gap_256": (64, 64),
    "eva02_tiny_patch14_224": (56, 84),
    "swin_tiny_patch4_window7_224": (64, 128),
}


class TestRollout:
    @pytest.mark.parametrize("name", ATTENTIVE)
    def test_it_gives_maps_and_leaves_no_trace(self, name):
        model = make_model(name).train()
        fused = [getattr(m, "fused_attn", None) for m in model.modules()]
        images = torch.randn(2, 3, *MODELS[name])
        cams = gradcam.make_cam(model, images, method="rollout")
        assert cams.shape == (2, *MODELS[name])
        assert cams.min() >= 0
        assert cams.max() == 1
        assert [getattr(m, "fused_attn", None) for m in model.modules()] == fused
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert model.training

    def test_it_is_the_product_of_the_papers_matrices(self):
        """For a ViT the carried row equals the row of the full product."""
        model = make_model("vit_tiny_patch16_224").eval()
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad(), rollout._recorded(model) as steps:
            model(images)
        whole = torch.eye(25)
        for step in steps:
            whole = (0.5 * torch.eye(25) + 0.5 * step.attention[0]) @ whole
        flow = rollout._flow_tokens(steps, token=True)[0, :, 0]
        torch.testing.assert_close(flow, whole[0])

    def test_windows_keep_the_mass(self):
        """Each row of attention sums to one, so nothing is lost without padding."""
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=2, img_size=224
        ).eval()
        with torch.no_grad(), rollout._recorded(model) as steps:
            model(torch.randn(1, 3, 224, 224))
        flow = rollout._flow_windows(steps)
        assert flow.shape == (1, 56, 56)
        assert flow.sum().item() == pytest.approx(49, rel=1e-3)

    def test_a_network_without_attention_is_refused(self):
        with pytest.raises(ValueError, match="ResNet has none to follow"):
            gradcam.make_cam(
                make_model("resnet10t"), torch.randn(1, 3, 64, 64), method="rollout"
            )


def draw_lettered(side=96):
    """A filled drawing with a line of letters below it, and the letters' place."""
    picture = np.full((side, side), 255, np.uint8)
    cv2.circle(picture, (48, 40), 24, 0, 3)
    for column in range(8):
        cv2.putText(picture, "E", (14 + 9 * column, 90), 0, 0.3, 0, 1)
    return picture


class TestRegions:
    def test_lettering_is_told_from_the_drawing(self):
        ink = gradcam.find_ink(draw_lettered())
        text = gradcam.find_text(ink)
        assert text[84:90, 14:80].mean() > 0.8
        assert text[:70].sum() == 0

    def test_who_reads_the_lettering_is_found(self):
        picture = draw_lettered()
        cams = np.zeros((2, 96, 96), np.float32)
        cams[0, 84:90, 14:80] = 1  # the watermark's reader
        cams[1, 14:67, 22:74] = 1  # who looks at the drawing
        table = gradcam.region_table(cams, np.stack([picture, picture]))
        assert table.loc[0, "on_text"] > 0.8
        assert table.loc[1, "on_text"] == 0
        shares = table[["on_ink", "on_text", "on_paper"]].sum(axis=1)
        np.testing.assert_allclose(shares, 1)
        np.testing.assert_allclose(table[["ink", "text", "paper"]].sum(axis=1), 1)
