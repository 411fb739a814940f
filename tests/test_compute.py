import pytest
import timm

from sketchlib import workspace
from sketchlib.training import compute


@pytest.fixture(scope="module")
def model():
    return timm.create_model("test_resnet", num_classes=3)


def choose(model, path, precision="auto", layout="auto", timed=False):
    return compute.choose_compute(
        model,
        (2, 1, 32),
        precision=precision,
        layout=layout,
        remember=path,
        timed=timed,
    )


def test_the_choice_is_measured_once_and_remembered(model, tmp_path, monkeypatch):
    path = tmp_path / "compute.json"
    way = choose(model, path)
    assert way.images_per_second > 0
    assert len(workspace.read_json(path)) == 1
    monkeypatch.setattr(compute, "_measure", None)
    assert choose(model, path) == way


def test_a_candidate_whose_loss_disagrees_is_not_taken(model, tmp_path, monkeypatch):
    def measure(_, __, ___, way):
        wrong = way.precision == "bf16"
        return (9.0, 1000.0) if wrong else (1.0, 10.0 + (way.layout == "nchw"))

    monkeypatch.setattr(compute, "_measure", measure)
    way = choose(model, tmp_path / "compute.json")
    assert (way.precision, way.layout) == ("fp32", "nchw")


def test_a_fixed_choice_measures_nothing_unless_the_speed_is_wanted(model, tmp_path):
    fixed = choose(model, tmp_path / "c.json", "fp32", "nchw")
    assert fixed.images_per_second == 0
    assert choose(model, tmp_path / "c.json", "fp32", "nchw", True).images_per_second


def test_an_unknown_precision_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="`precision` must be auto or one of"):
        choose(model, tmp_path / "c.json", "int8")


def test_blocks_are_a_candidate_where_there_are_depthwise_layers(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=3)
    way = choose(model, tmp_path / "c.json", "fp32", "channels_last", True)
    assert way.depthwise in compute.DEPTHWISE
    only = compute.choose_compute(
        model,
        (2, 1, 32),
        precision="fp32",
        layout="auto",
        depthwise="blocks",
        norm="folded",
        remember=tmp_path / "c.json",
    )
    assert (only.layout, only.depthwise) == ("channels_last", "blocks")


def test_f37_a_machine_without_gpu_falls_back_and_says_so(capsys, monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda name: None)
    assert compute.settle_precision("cpu", "auto") == "auto"
    assert compute.settle_precision("cpu", "fp16") == "fp32"
    told = capsys.readouterr().out
    assert "no NVIDIA GPU; computing on cpu" in told
    assert "fp16 needs a GPU; computing in fp32" in told


def test_f37_an_old_driver_is_named(capsys, monkeypatch):
    monkeypatch.setattr(compute.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    compute.settle_precision("cpu", "auto")
    assert "install the torch build that fits it" in capsys.readouterr().out


def test_f37_a_gpu_without_bf16_computes_in_fp16(capsys, monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_bf16_supported", lambda emulated: False)
    monkeypatch.setattr(compute.torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert compute.settle_precision("cuda", "bf16") == "fp16"
    assert "Tesla T4 has no bf16; computing in fp16" in capsys.readouterr().out
    assert compute.settle_precision("cuda", "fp32") == "fp32"
