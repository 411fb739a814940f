"""Where a timm model looks: class activation maps, and how much of them lies on ink.

The maps are pytorch-grad-cam's (Selvaraju et al. 2017 and kin); ours is what it does
not know about timm: which layer, how tokens become a grid, frozen and bf16 models,
and leaving the model as it was. Limits: maps are as coarse as the last feature map
(7 × 7 at 224 px for most CNNs), so a share of attention on thin lines means something
only beside the share that the lines cover. On ViTs they are a hint, not evidence:
tokens have mixed by the last block, and a map may be empty or lie beside the cause.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from pytorch_grad_cam import EigenCAM, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from sketchlib.analysis import rollout
from sketchlib.data import cache

METHODS: dict[str, Callable[..., Any]] = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
    "eigencam": EigenCAM,
}
ROLLOUT = "rollout"  # attention, of ViT, EVA and Swin; see `rollout`


def target_layer(model: nn.Module) -> nn.Module:
    """The layer whose output a map is read from: the last that knows where.

    A ViT that reads its class token looks for the last time in the attention of its
    last block, whose other tokens go nowhere afterwards: hence that block's first
    norm. All others give the module behind the last entry of `feature_info`;
    EfficientNet widens once more after it.

    Raises:
        ValueError: the model names no such layer, as models outside timm do.
    """
    blocks = list(getattr(model, "blocks", []))
    if getattr(model, "num_prefix_tokens", 0) and _reads_token(model) and blocks:
        attended = getattr(blocks[-1], "norm1", None)
        if isinstance(attended, nn.Module):
            return attended
    widened = getattr(model, "bn2", None)
    if hasattr(model, "conv_head") and isinstance(widened, nn.Module):
        return widened
    stages = getattr(model, "feature_info", None) or []
    entries = stages if isinstance(stages, list) else list(stages.get_dicts())
    if not entries or "module" not in entries[-1]:
        raise ValueError(
            f"a timm model with `feature_info` was expected, but "
            f"{type(model).__name__} names no last feature layer; use a model made by "
            "timm.create_model"
        )
    return model.get_submodule(entries[-1]["module"])


def _reads_token(model: nn.Module) -> bool:
    """Whether the head sees prefix tokens alone, not the mean over the picture."""
    return str(getattr(model, "global_pool", "token")) in ("token", "")


def make_cam(
    model: nn.Module,
    images: Tensor,
    targets: Tensor | None = None,
    method: str = "gradcam",
) -> np.ndarray:
    """Class activation maps of one batch, in float32 whatever the model is.

    The model is left as it was: mode, gradients and `requires_grad`. A model in
    bf16 or fp16 is explained on a float32 copy. For many pictures call it batch by
    batch; nothing is kept between calls.

    Args:
        model: a timm classifier, frozen or not.
        images: (B, 3, H, W) float, normalised as the model was trained.
        targets: (B,) class numbers to explain; None explains each top class.
        method: gradcam, gradcam++, hirescam, layercam, eigencam (no gradients) or
            rollout (attention of ViT, EVA and Swin, the same for every class).
    Returns:
        (B, H, W) float32, 0-1 within each picture; all 0 where nothing speaks for
        the class.
    Raises:
        ValueError: wrong shapes, an unknown method, or a model whose tokens form no
            grid.
    """
    _check_request(model, images, targets, method)
    with _as_float32(model) as ready, torch.inference_mode(False), torch.enable_grad():
        device = next(ready.parameters()).device
        # The graph starts at the picture, so that frozen models have gradients too.
        start = images.detach().clone().to(device, torch.float32).requires_grad_()
        with torch.autocast(device.type, enabled=False):
            cams: np.ndarray | None
            if method == ROLLOUT:
                cams = _run_rollout(ready, start.detach())
            else:
                cams = _run(ready, start, targets, method)
    if cams is None or cams.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"{method} should give one map per image, but gave "
            f"{None if cams is None else cams.shape}; try another `method`"
        )
    if not np.isfinite(cams).all():
        raise ValueError(
            f"{method} maps should be finite, but are not; the weights may hold NaN"
        )
    # The library adds 1e-7 to what it divides by, which dims maps of tiny gradients.
    highest = cams.max(axis=(1, 2), keepdims=True)
    cams = np.divide(cams, highest, out=np.zeros_like(cams), where=highest > 0)
    return np.clip(cams, 0, 1).astype(np.float32)


def _check_request(
    model: nn.Module, images: Tensor, targets: Tensor | None, method: str
) -> None:
    if method not in METHODS and method != ROLLOUT:
        raise ValueError(
            f"`method` should be one of {[*METHODS, ROLLOUT]}, but {method!r} came"
        )
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            "`images` should be normalised floats (B, 3, H, W), but "
            f"{images.dtype} {tuple(images.shape)} came; use datasets.to_input"
        )
    if targets is None:
        return
    if len(targets) != len(images):
        raise ValueError(
            f"`targets` should have one class per image, {len(images)}, but has "
            f"{len(targets)}"
        )
    # pytorch-grad-cam prints an IndexError and goes on without a result.
    classes = int(getattr(model, "num_classes", 0)) or 1 + int(targets.max())
    if int(targets.min()) < 0 or int(targets.max()) >= classes:
        worst = int(targets[(targets < 0) | (targets >= classes)][0])
        raise ValueError(
            f"`targets` should be classes 0 to {classes - 1}, but {worst} came; was "
            "the model made for these classes?"
        )


def _run(
    model: nn.Module, images: Tensor, targets: Tensor | None, method: str
) -> np.ndarray | None:
    """Maps by pytorch-grad-cam; None where it swallowed an IndexError."""
    wanted = None
    if targets is not None:
        wanted = [ClassifierOutputTarget(int(target)) for target in targets]
    reshape = _grid_maker(model, (images.shape[2], images.shape[3]))
    cams = None
    with METHODS[method](model, [target_layer(model)], reshape) as cam:
        cams = cam(images, targets=wanted)
        cam.outputs = None  # it holds the graph, and with it all activations
    return cams


def _run_rollout(model: nn.Module, images: Tensor) -> np.ndarray:
    """Attention rollout (B, H, W), 0-1."""
    size = (images.shape[2], images.shape[3])
    token = bool(getattr(model, "num_prefix_tokens", 0)) and _reads_token(model)
    flow = rollout.roll_out(model, images, _grid_maker(model, size), token)
    maps = [
        cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC)
        for one in flow.cpu().numpy()
    ]
    return np.clip(np.stack(maps), 0, 1)


def _grid_maker(model: nn.Module, size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """A function from a layer's output to (B, C, h, w), for pictures of (H, W)."""
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    channels = int(getattr(model, "num_features", 0))
    last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def as_grid(output: Tensor) -> Tensor:
        if output.ndim == 3:
            return _fold_tokens(output, prefix, size)
        if last or (output.shape[3] == channels != output.shape[1]):
            return output.permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)
        return output

    return as_grid


def _fold_tokens(tokens: Tensor, prefix: int, size: tuple[int, int]) -> Tensor:
    """(B, L, C) -> (B, C, h, w): class and register tokens off, the rest as a grid.

    The grid is the factorisation of the tokens nearest in shape to the picture,
    which holds for any patch size and for pictures that are not square.
    """
    for skipped in (prefix, 0):  # some models add their tokens after this layer
        count = tokens.shape[1] - skipped
        heights = [h for h in range(1, count + 1) if count % h == 0]
        misfits = [abs(np.log(h * h / count * size[1] / size[0])) for h in heights]
        if heights and min(misfits) < 0.35:  # within √2 of the picture's shape
            height = heights[int(np.argmin(misfits))]
            grid = tokens[:, skipped:].unflatten(1, (height, count // height))
            return grid.permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)
    raise ValueError(
        f"tokens should form a grid over the picture, but {tokens.shape[1]} tokens, "
        f"{prefix} of them prefix, do not for {size[0]} × {size[1]} px; choose sides "
        "that are multiples of the patch"
    )


@contextlib.contextmanager
def _as_float32(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, frozen, in float32; itself if it is, else a copy."""
    if any(p.dtype != torch.float32 for p in model.parameters()):
        yield copy.deepcopy(model).float().eval().requires_grad_(False)
        return
    modes = [(module, module.training) for module in model.modules()]
    wants = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        # Without parameter gradients the backward pass costs half.
        yield model.eval().requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
        for parameter, required, grad in wants:
            parameter.requires_grad_(required)
            parameter.grad = grad


# --- what is looked at --------------------------------------------------------


def ink_share(cams: np.ndarray, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of the attention lies on ink, beside how much of the picture is ink.

    Args:
        cams: (N, H, W) float, 0-1.
        pixels: (N, H, W) or (N, H, W, 3) uint8 of the same pictures.
    Returns:
        Two (N,) arrays, 0-1: attention on ink, NaN where a map is empty; and the
        share of ink, which is what a model that looks anywhere would reach.
    """
    masks = np.stack([find_ink(one) for one in pixels])
    return region_share(cams, masks), masks.mean(axis=(1, 2))


def region_share(cams: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(N,) share of the attention inside the masks, NaN where a map is empty.

    Args:
        cams: (N, H, W) float, 0-1.
        masks: (N, H, W) bool: ink, a watermark's place, a box around lettering.
    """
    if cams.shape != masks.shape:
        raise ValueError(
            f"maps and masks should have the same shape, but {cams.shape} and "
            f"{masks.shape} came; resize the pictures to the maps"
        )
    total = cams.sum(axis=(1, 2), dtype=np.float64)
    inside = (cams * masks).sum(axis=(1, 2), dtype=np.float64)
    empty = np.full(len(cams), np.nan)
    return np.divide(inside, total, out=empty, where=total > 0)


def find_ink(picture: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels a third of the way from the paper to the strongest ink."""
    grey = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    depth = np.abs(grey.astype(np.int16) - cache.ground_level(grey))
    return depth > max(20, depth.max() // 3)  # 20 grey levels: below is paper grain


REGIONS = ("ink", "text", "paper")


def region_table(cams: np.ndarray, pixels: np.ndarray) -> pd.DataFrame:
    """How much of the attention lies on ink, on lettering and on paper.

    Args:
        cams: (N, H, W) float, 0-1.
        pixels: (N, H, W) or (N, H, W, 3) uint8 of the same pictures.
    Returns:
        One row per picture: on_ink, on_text, on_paper (shares of the attention, NaN
        where a map is empty) and ink, text, paper (shares of the picture: what a model
        that looks anywhere would reach). Lettering is no ink here.
    """
    inked = np.stack([find_ink(one) for one in pixels])
    text = np.stack([find_text(one) for one in inked])
    masks = {"ink": inked & ~text, "text": text, "paper": ~inked & ~text}
    looked = {f"on_{name}": region_share(cams, mask) for name, mask in masks.items()}
    areas = {name: mask.mean(axis=(1, 2)) for name, mask in masks.items()}
    return pd.DataFrame(looked | areas)


def find_text(ink: np.ndarray) -> np.ndarray:
    """(H, W) bool: boxes around lines of lettering, from ink (H, W) bool.

    Lettering is a row of at least four small separate marks of like height, close to
    each other. Limits: joined handwriting is ink, a row of dots is text.
    """
    height, width = ink.shape
    found = np.zeros(ink.shape, bool)
    count, _, stats, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8))
    tall = stats[:, cv2.CC_STAT_HEIGHT]
    wide = stats[:, cv2.CC_STAT_WIDTH]
    small = (tall <= 0.14 * height) & (wide <= 0.14 * width) & (tall >= 3)
    marks = [
        tuple(int(value) for value in stats[k][:4]) for k in range(1, count) if small[k]
    ]
    marks.sort()
    while marks:
        line = [marks.pop(0)]
        for mark in list(marks):
            if _continues(line[-1], mark):
                line.append(mark)
                marks.remove(mark)
        if len(line) >= 4:
            left = min(x for x, *_ in line)
            right = max(x + w for x, _, w, _ in line)
            top = min(y for _, y, *_ in line)
            bottom = max(y + h for _, y, _, h in line)
            found[top:bottom, left:right] = True
    return found


def _continues(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether a mark (x, y, w, h) is the next letter of a line."""
    gap = other[0] - (one[0] + one[2])
    tallest = max(one[3], other[3])
    shared = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return -2 <= gap <= 1.2 * tallest and shared >= 0.5 * min(one[3], other[3])
