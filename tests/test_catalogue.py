from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.data import resolve_model_data_config

from sketchlib.training import catalogue, heads, models

PRESETS = sorted(
    (Path(__file__).parents[1] / "params/03_train/imagenet_sketch").glob("*.yaml")
)
FINAL_MODELS = {  # of the reports, and today's best
    "eva_giant_patch14_336",
    "eva02_large_patch14_448",
    "convnext_xxlarge",
    "regnety_1280",
    "vit_huge_patch14_clip_224",
    "resnext101_32x4d",
    "vit_so400m_patch14_siglip_gap_378",
    "convnext_base",
    "vit_base_patch16_siglip_gap_384",
}


@pytest.mark.parametrize("name", catalogue.read_catalogue()["name"])
def test_the_table_says_what_the_installed_timm_counts(name):
    row = (
        catalogue.pd.read_csv(Path(catalogue.__file__).with_name("catalogue.csv"))
        .set_index("name")
        .loc[name]
    )
    measured = catalogue.measure(name)
    assert {key: row[key] for key in catalogue.COUNTED} == measured
    assert timm.get_pretrained_cfg(name).has_weights


def test_every_model_has_a_reason_and_scores_are_percent():
    table = catalogue.read_catalogue()
    assert table["why"].str.len().min() > 5
    assert table["sketch_top1"].dropna().between(1, 100).all()
    assert (table["train_gb"] > table["frozen_gb"]).all()


def test_memory_grows_with_weights_and_with_pictures_size():
    assert catalogue.estimate_memory(100, 50)[0] == pytest.approx(1.6 + 3.2)
    small, large = (catalogue.estimate_memory(100, a)[1] for a in (50, 500))
    assert small < large < catalogue.estimate_memory(100, 500)[0]


def test_the_reports_final_models_have_presets():
    named = {yaml.safe_load(path.read_text())["model"] for path in PRESETS}
    assert {name.split(".")[0] for name in named} >= FINAL_MODELS


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_a_model_that_can_be_made_and_sees_it_as_pretrained(path):
    preset = yaml.safe_load(path.read_text())
    config = timm.get_pretrained_cfg(preset["model"], allow_unregistered=False)
    assert config is not None
    assert config.has_weights
    assert preset["side_px"] == config.input_size[-1]
    with torch.device("meta"):
        model = models.make_model(
            preset["model"],
            500,
            "none",
            drop_path_rate=preset.get("drop_path_rate", 0.1),
            side_px=preset["side_px"],
            head_layers=preset.get("head_layers", "linear"),
            head_hidden=512,
        )
        logits = model.eval()(torch.empty(1, 3, preset["side_px"], preset["side_px"]))
    assert logits.shape == (1, 500)
    squashed = resolve_model_data_config(model)["crop_mode"] == "squash"
    assert isinstance(squashed, bool)
    if preset.get("unfreeze_last"):
        assert preset["unfreeze_last"] <= len(heads.list_stages(model))
    if preset.get("head") == "transplant":
        assert config.num_classes == 1000
