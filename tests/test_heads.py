import dataclasses

import pytest
import timm
import torch
from recipes import make
from timm.data import ImageNetInfo

from sketchlib.training import heads, models, optim

WNIDS = ["n02123045", "n01440764", "n07930864", "n04266014", "n02950826"]


def test_transplanted_logits_equal_the_pretrained_ones_at_those_rows():
    full = models.make_model("tf_efficientnet_lite0", -1, "auto").eval()
    model = models.make_model("tf_efficientnet_lite0", 5, "auto").eval()
    rows = heads.find_rows(WNIDS, "", full)
    heads.transplant(model, full, rows)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    info = ImageNetInfo()
    wanted = [
        next(i for i in range(1000) if info.index_to_label_name(i) == wnid)
        for wnid in WNIDS
    ]
    with torch.inference_mode():
        torch.testing.assert_close(model(x), full(x)[:, wanted])


def test_a_mapping_gives_our_classes_their_rows(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("class_name,wnid\ncat,n02123045\nfish,n01440764\n")
    full = timm.create_model("resnet10t", num_classes=1000)
    found = heads.find_rows(["cat", "fish", "abacus"], str(path), full)
    assert found == {0: 281, 1: 0}
    before = timm.create_model("resnet10t", num_classes=3)
    after = timm.create_model("resnet10t", num_classes=3)
    after.load_state_dict(before.state_dict())
    heads.transplant(after, full, found)
    assert torch.equal(after.fc.weight[2], before.fc.weight[2])
    assert torch.equal(after.fc.weight[0], full.fc.weight[281])


@pytest.mark.parametrize(
    ("content", "told"),
    [("name,wnid\na,b\n", "is `name` it"), ("class_name,wnid\na,n0\n", "none of 1")],
)
def test_a_mapping_that_maps_nothing_is_refused(tmp_path, content, told):
    (tmp_path / "map.csv").write_text(content)
    full = timm.create_model("resnet10t", num_classes=1000)
    with pytest.raises(ValueError, match=told):
        heads.find_rows(["cat"], str(tmp_path / "map.csv"), full)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        heads.find_rows(["cat"], str(tmp_path / "gone.csv"), full)


def test_a_model_without_an_imagenet_classifier_cannot_be_transplanted():
    with torch.device("meta"):
        tower = timm.create_model("vit_base_patch16_siglip_gap_384.v2_webli")
    with pytest.raises(ValueError, match="use `head` probe"):
        heads.find_rows(WNIDS, "", tower)


# --- forms --------------------------------------------------------------------


def test_multi_dropout_is_the_mean_over_masks_and_linear_when_it_predicts():
    torch.manual_seed(0)
    head = heads.make_head("multi_dropout", 64, 3, hidden=0, drop_rate=0.5)
    x = torch.randn(200, 64)
    plain = torch.nn.functional.linear(x, head.weight, head.bias)
    assert torch.equal(head.eval()(x), plain)
    several = (head.train()(x) - plain).pow(2).mean()
    one = torch.nn.functional.linear(
        torch.dropout(x, 0.5, True), head.weight, head.bias
    )
    single = (one - plain).pow(2).mean()
    assert several < 0.4 * single  # a mean over five has a fifth of the variance
    ones = torch.ones(400, 400)
    mask = head._mean_of_masks(ones)
    masks = torch.stack([torch.dropout(ones, 0.5, True) for _ in range(heads.MASKS)])
    for level in masks.mean(0).unique():
        share = [(part == level).float().mean() for part in (mask, masks.mean(0))]
        assert abs(share[0] - share[1]) < 0.01  # the same distribution
    assert set(mask.unique().tolist()) == set(masks.mean(0).unique().tolist())


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
)
@pytest.mark.parametrize("layers", heads.LAYERS)
def test_every_form_fits_every_family_and_is_read_back(name, layers, tmp_path):
    given = {"head_layers": layers, "head_hidden": 7, "drop_rate": 0.3}
    model = models.make_model(name, 4, "none", **given).eval()
    path = tmp_path / "w.pth"
    torch.save(model.state_dict(), path)
    again = models.make_model(name, 4, str(path), **given).eval()
    x = torch.randn(1, 3, 64, 64) if "vit" not in name else torch.randn(1, 3, 160, 160)
    assert torch.equal(model(x), again(x))
    assert model(x).shape == (1, 4)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="`head_layers` must be one of"):
        heads.make_head("deep", 4, 2, hidden=1, drop_rate=0.0)


# --- what trains ----------------------------------------------------------------


def trainable(model):
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def test_freezing_leaves_only_the_classifier():
    model = timm.create_model("test_resnet", num_classes=3)
    heads.freeze_backbone(model, 0)
    assert trainable(model) == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("name", "last", "never"),
    [
        ("test_resnet", "layer4", "layer3"),
        ("test_vit", "blocks.5", "blocks.4"),
        ("test_convnext", "stages.3", "stages.2"),
        ("test_efficientnet", "blocks.4", "blocks.3"),
    ],
)
def test_the_last_stage_opens_with_what_stands_behind_it(name, last, never):
    model = timm.create_model(name, num_classes=3)
    heads.freeze_backbone(model, 1)
    names = trainable(model)
    assert any(key.startswith(last + ".") for key in names)
    assert not any(key.startswith(never + ".") for key in names)
    every = [key for key, _ in model.named_parameters()]
    assert names == every[every.index(names[0]) :]
    with pytest.raises(ValueError, match="`unfreeze_last` must be 0 to"):
        heads.freeze_backbone(model, 100)


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",
        "efficientnet_lite0",
        "convnext_atto",
        "regnety_002",
        "vit_tiny_patch16_224",
        "eva02_tiny_patch14_224",
        "swin_tiny_patch4_window7_224",
    ],
)
def test_f49_layer_decay_reaches_every_family(name):
    with torch.device("meta"):
        model = models.make_model(name, 5, "none")
    recipe = make(layer_decay=0.7, warmup_epochs=1.0)
    optimizer = optim.make_optimizer(model, recipe, recipe.lr)
    optim.make_schedule(optimizer, recipe, 10).step_update(1)
    rates = {
        id(weight): group["lr"]
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    ordered = [rates[id(weight)] for weight in model.parameters()]
    head = model.get_submodule(heads.classifier_name(model))
    assert rates[id(head.weight)] == max(ordered)
    assert ordered[0] < 0.8 * rates[id(head.weight)]
    assert len(set(ordered)) >= 4


# --- adapters -------------------------------------------------------------------


def test_adapters_start_as_nothing_train_alone_and_fold_into_the_weights():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    plain = models.make_model("test_vit", 3, "none").eval()
    model = timm.create_model("test_vit", num_classes=3)
    model.load_state_dict(plain.state_dict())
    heads.add_lora(model, 4)
    model.eval()
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model(x), plain(x))
    assert all("lora_" in key or key.startswith("head.") for key in trainable(model))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                weight.normal_()
    changed = model(x)
    assert not torch.allclose(changed, plain(x), atol=1e-3)
    heads.merge_lora(model)
    assert set(model.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(model(x), changed, atol=1e-4, rtol=1e-4)


def test_a_network_without_attention_takes_no_adapters():
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="set `lora_rank: 0`"):
        models.make_model("test_resnet", 3, "none", lora_rank=4)


def test_unfreezing_without_freezing_is_a_contradiction():
    with pytest.raises(ValueError, match="set `frozen: true`"):
        dataclasses.replace(make(), unfreeze_last=1)
