"""Models worth knowing, with what they cost: the table behind `sketch models`.

`catalogue.csv` holds the names, why each is there and its published score; what can be
counted (size, parameters, activations, licence) was counted with `measure` and is held
against the installed timm by a test, so that showing the table needs no torch.
ImageNet-Sketch top-1 is timm's results-sketch.csv of 2025-10-30: 1000-way, without any
training on sketches. Limits: memory is a formula, not a measure.
"""

from pathlib import Path
from typing import Any

import pandas as pd

COUNTED = ["side_px", "params_m", "activations_m", "licence"]
BATCH = 32  # pictures, for the estimate of memory


def read_catalogue() -> pd.DataFrame:
    """One row per model, small to large.

    Returns:
        name, why, sketch_top1 (%), side_px, params_m, licence, train_gb (fine-tuning
        32 pictures at once in mixed precision), frozen_gb (features only).
    """
    table = pd.read_csv(Path(__file__).with_name("catalogue.csv"))
    estimates = pd.DataFrame(
        [
            estimate_memory(params, activations)
            for params, activations in zip(
                table["params_m"], table["activations_m"], strict=True
            )
        ],
        columns=["train_gb", "frozen_gb"],
    )
    shown = ["name", "why", "sketch_top1", "side_px", "params_m", "licence"]
    return pd.concat([table[shown], estimates], axis=1)


def estimate_memory(params_m: float, activations_m: float) -> tuple[float, float]:
    """(fine-tuning, frozen) memory in GB, for a batch of 32.

    Fine-tuning keeps weights, gradients and two moments in 32 bits and every
    activation in 16; frozen keeps the weights and a few activations at a time.
    """
    train = (16 * params_m + 2 * BATCH * activations_m) / 1000
    frozen = (4 * params_m + 2 * BATCH * activations_m / 20) / 1000
    return round(train, 1), round(frozen, 1)


def measure(name: str) -> dict[str, Any]:
    """What can be counted of a timm model, on the meta device: nothing is loaded.

    Returns:
        side_px, params_m, activations_m (numbers kept per picture for the backward
        pass, millions) and licence.
    """
    import timm
    import torch
    from torch import nn

    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    assert config is not None  # a test holds every name against timm
    kept = 0

    def count(_: nn.Module, __: object, output: object) -> None:
        nonlocal kept
        kept += output.numel() if isinstance(output, torch.Tensor) else 0

    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        model.eval()(torch.empty(1, *config.input_size))
    params = sum(weight.numel() for weight in model.parameters())
    return {
        "side_px": config.input_size[-1],
        "params_m": round(params / 1e6, 1),
        "activations_m": round(kept / 1e6, 1),
        "licence": config.license or "not stated",
    }
