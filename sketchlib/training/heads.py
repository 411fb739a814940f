"""Classifiers on top of a backbone: their form, and where they start.

The form is linear, one hidden layer, or several dropout masks averaged (Inoue 2019,
multi-sample dropout). A start is random, a probe fitted to frozen features (Kumar et
al. 2022, LP-FT), or the rows of the pretrained ImageNet classifier that mean the same
classes. Limits: models that end in one linear layer.
"""

import difflib
import math
import re
from collections.abc import Sequence

import pandas as pd
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from sketchlib import workspace
from sketchlib.training.network import LAYERS

_ATTENTION = r"attn\.(qkv|q|kv|q_proj|k_proj|v_proj|proj)$"
MASKS = 5  # dropout masks averaged by multi_dropout


class MultiDropout(nn.Linear):
    """A linear layer whose outputs are averaged over several dropout masks."""

    def __init__(self, width: int, classes: int, rate: float) -> None:
        super().__init__(width, classes)
        self.drop = nn.Dropout(rate)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, D) → (B, K)."""
        if not self.training:
            return super().forward(features)
        return super().forward(features * self._mean_of_masks(features))

    def _mean_of_masks(self, features: torch.Tensor) -> torch.Tensor:
        """What a mean over masks keeps of each value: binomial, in one draw.

        A linear layer may see the mean of the masked features instead of each.
        """
        keep = 1 - self.drop.p
        if keep == 0:
            return torch.zeros_like(features)
        chances = [
            math.comb(MASKS, count) * keep**count * (1 - keep) ** (MASKS - count)
            for count in range(MASKS)
        ]
        steps = torch.tensor(chances, device=features.device).cumsum(0)
        drawn = torch.rand(features.shape, device=features.device)
        kept = torch.bucketize(drawn, steps, out_int32=True)  # how many masks keep it
        return kept.to(features.dtype) / (MASKS * keep)


def make_head(
    layers: str, width: int, classes: int, *, hidden: int, drop_rate: float
) -> nn.Module:
    """A classifier of D features.

    Args:
        layers: `linear`, `mlp` (one hidden layer) or `multi_dropout`.
        width: D.
        classes: K.
        hidden: units of the hidden layer of `mlp`.
        drop_rate: dropout inside the head, 0-1.
    Raises:
        ValueError: an unknown form.
    """
    if layers == "linear":
        return nn.Linear(width, classes)
    if layers == "multi_dropout":
        return MultiDropout(width, classes, drop_rate)
    if layers == "mlp":
        hides = nn.Linear(width, hidden)
        return nn.Sequential(
            hides, nn.GELU(), nn.Dropout(drop_rate), nn.Linear(hidden, classes)
        )
    raise ValueError(f"`head_layers` must be one of {LAYERS}, but {layers!r} came")


def classifier_name(model: nn.Module) -> str:
    """Dotted name of the classifier, empty where the model has none."""
    name = getattr(model, "default_cfg", {}).get("classifier") or ""
    return name if isinstance(name, str) else name[0]


def replace_classifier(
    model: nn.Module, layers: str, *, hidden: int, drop_rate: float
) -> None:
    """Put a classifier of the given form in the place of the model's linear one.

    Raises:
        ValueError: the model does not end in a linear layer.
    """
    if layers == "linear":
        return
    name = classifier_name(model)
    old = model.get_submodule(name) if name else None
    if not isinstance(old, nn.Linear):
        raise ValueError(
            f"`head_layers` {layers} replaces a linear classifier, but this model ends "
            f"in {old}; use `head_layers` linear"
        )
    new = make_head(
        layers, old.in_features, old.out_features, hidden=hidden, drop_rate=drop_rate
    )
    model.set_submodule(name, new)


# --- the start from ImageNet's classifier -------------------------------------


def find_rows(classes: Sequence[str], mapping: str, model: nn.Module) -> dict[int, int]:
    """Our class number → the row of the pretrained classifier that means the same.

    Args:
        classes: K class names; ImageNet wnids (n01443537) match by themselves.
        mapping: a CSV with the columns `class_name, wnid`, or empty.
        model: with the classifier it was pretrained with.
    Raises:
        ValueError: the classifier is not ImageNet's, the mapping is no such table, or
            no class matches.
        FileNotFoundError: the mapping is not there.
    """
    info = ImageNetInfo(find_subset(model))
    rows = {info.index_to_label_name(row): row for row in range(info.num_classes())}
    named = _read_mapping(mapping) if mapping else {name: name for name in classes}
    wnids = [named.get(name, "") for name in classes]
    found = {number: rows[wnid] for number, wnid in enumerate(wnids) if wnid in rows}
    if not found:
        raise ValueError(
            f"`head` transplant needs classes named by ImageNet wnids such as "
            f"{info.index_to_label_name(0)}, or a `mapping` to them, but none of "
            f"{len(classes)} classes matches (first {classes[0]!r}); use `head` probe"
        )
    return found


def find_subset(model: nn.Module) -> str:
    """Timm's name for the ImageNet classes of a pretrained classifier.

    Raises:
        ValueError: the classifier is not ImageNet's.
    """
    subset = infer_imagenet_subset(model)
    if subset is None:
        raise ValueError(
            "`head` transplant needs a model with an ImageNet classifier, but "
            f"{type(model).__name__} has {getattr(model, 'num_classes', 0)} outputs; "
            "use `head` probe"
        )
    return subset


def _read_mapping(mapping: str) -> dict[str, str]:
    path = workspace.resolve_path(mapping)
    if not path.is_file():
        raise FileNotFoundError(
            f"`mapping` should be a CSV of class_name, wnid, but {path} does not "
            "exist; correct the path"
        )
    table = pd.read_csv(path, dtype=str)
    missing = [name for name in ("class_name", "wnid") if name not in table]
    if missing:
        near = difflib.get_close_matches(missing[0], list(table), 1, 0.5)
        hint = f" (is `{near[0]}` it?)" if near else ""
        raise ValueError(
            f"{path} should have the columns class_name and wnid, but has "
            f"{list(table)}{hint}; rename them"
        )
    return dict(zip(table["class_name"], table["wnid"], strict=True))


def transplant(model: nn.Module, full: nn.Module, rows: dict[int, int]) -> None:
    """Start the classifier of `model` from rows of that of `full`.

    Classes without a row keep their random start.

    Raises:
        ValueError: a classifier is no linear layer, or their widths differ.
    """
    name = classifier_name(full)
    old, new = full.get_submodule(name), model.get_submodule(name)
    linear = isinstance(old, nn.Linear) and isinstance(new, nn.Linear)
    if not linear or old.in_features != new.in_features:  # type: ignore[union-attr]
        raise ValueError(
            f"`head` transplant copies rows of a linear classifier, but {old} → {new} "
            "came; use `head_layers` linear or multi_dropout, or `head` probe"
        )
    ours, theirs = list(rows), list(rows.values())
    with torch.no_grad():
        new.weight[ours] = old.weight[theirs]  # type: ignore[index, operator]
        new.bias[ours] = old.bias[theirs]  # type: ignore[index, operator]


# --- what trains ----------------------------------------------------------------


def freeze_backbone(model: nn.Module, unfreeze_last: int) -> None:
    """Leave only the classifier and the last stages or blocks trainable.

    Args:
        model: a bare timm model; the adapters of LoRA, if any, stay trainable.
        unfreeze_last: stages of a convolutional network or blocks of a transformer,
            counted from the end; norms behind them train with them.
    Raises:
        ValueError: more stages than there are.
    """
    name = classifier_name(model)
    stages = list_stages(model)
    if unfreeze_last > len(stages):
        raise ValueError(
            f"`unfreeze_last` must be 0 to {len(stages)}, the stages or blocks of "
            f"{type(model).__name__}, but {unfreeze_last} came; for all use `frozen: "
            "false`"
        )
    opened = [*stages[len(stages) - unfreeze_last :], name]
    names = [key for key, _ in model.named_parameters()]
    first = min(
        (i for i, key in enumerate(names) if key.startswith(opened[0] + ".")), default=0
    )
    for i, (key, weight) in enumerate(model.named_parameters()):
        behind = unfreeze_last > 0 and i >= first
        adapts = "lora_" in key
        weight.requires_grad = behind or adapts or key.startswith(name + ".")


def list_stages(model: nn.Module) -> list[str]:
    """Dotted names of the stages (or blocks) of a timm model, from input to output."""
    for name in ("stages", "blocks", "layers"):
        found = getattr(model, name, None)
        if isinstance(found, nn.Sequential | nn.ModuleList):
            return [f"{name}.{number}" for number in range(len(found))]
    numbered = [name for name, _ in model.named_children() if name[-1:].isdigit()]
    return [name for name in numbered if name[:-1] in ("layer", "s")]


def add_lora(model: nn.Module, rank: int) -> None:
    """Put low-rank adapters into the attention of a transformer, in place (peft).

    The backbone is frozen; adapters and classifier train. Hu et al. 2021.

    Raises:
        ModuleNotFoundError: the extra `lora` is not installed.
        ValueError: the model has no attention layers to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`lora_rank` needs peft, which is not installed; run `pip install "
            "'sketchlib[lora]'`, or set `lora_rank: 0`"
        ) from error
    targets = [
        key
        for key, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.search(_ATTENTION, key)
    ]
    if not targets:
        raise ValueError(
            f"`lora_rank` adapts the attention of a transformer, but "
            f"{type(model).__name__} has none; set `lora_rank: 0`"
        )
    adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(adapters, model)
    for key, weight in model.named_parameters():
        weight.requires_grad = "lora_" in key
    for weight in model.get_submodule(classifier_name(model)).parameters():
        weight.requires_grad = True


def merge_lora(model: nn.Module) -> None:
    """Fold the adapters into the weights, so that a plain timm model remains."""
    wrapped = [
        (key, module)
        for key, module in model.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "get_base_layer")
    ]
    for key, module in wrapped:
        module.merge()  # type: ignore[operator]
        model.set_submodule(key, module.get_base_layer())  # type: ignore[operator]
