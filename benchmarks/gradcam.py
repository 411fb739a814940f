"""Grad-CAM: pictures a second, ours against pytorch-grad-cam as its README calls it.

Run: python benchmarks/gradcam.py [--side PX] [--pictures N] [--batch B]
Both explain the same random pictures on the same untrained models, in turns; ours
takes no gradients of the weights and finds the layer itself.
"""

import argparse
import time

import table
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from sketchlib.analysis import gradcam

MODELS = ("resnet18", "tf_efficientnet_lite0")
ROUNDS = 3


def explain_plainly(
    model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor
) -> None:
    """The library's own loop, with the layer its user would name."""
    layer = gradcam.target_layer(model)
    with GradCAM(model, [layer]) as cam:
        cam(images, targets=[ClassifierOutputTarget(int(one)) for one in targets])


def time_pair(
    model: torch.nn.Module, images: torch.Tensor, batches: int
) -> tuple[float, float]:
    """Pictures a second of ours and of the bare library, one after the other."""
    targets = torch.arange(len(images))
    speeds = []
    for explain in (gradcam.make_cam, explain_plainly):
        explain(model, images, targets)
        started = time.perf_counter()
        for _ in range(batches):
            explain(model, images, targets)
        speeds.append(batches * len(images) / (time.perf_counter() - started))
    return speeds[0], speeds[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    rows = []
    for name in MODELS:
        model = timm.create_model(name, num_classes=500).eval()
        images = torch.randn(asked.batch, 3, asked.side, asked.side)
        batches = max(1, asked.pictures // asked.batch)
        pairs = [time_pair(model, images, batches) for _ in range(ROUNDS)]
        what = f"Grad-CAM of {name} at {asked.side} px against the bare library"
        rows.append(table.ratio_row(what, pairs, 1.0, "pictures/s"))
    table.write_rows("gradcam", rows)


if __name__ == "__main__":
    main()
