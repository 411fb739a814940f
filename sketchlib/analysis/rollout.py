"""Attention rollout: what the tokens that decide have drawn together, block by block.

Abnar and Zuidema 2020, "Quantifying attention flow in transformers": attention
averaged over heads, half of each token kept where it is (the residual), multiplied
through the blocks. Only the row that the classifier reads is carried, backwards, so
it costs no (tokens × tokens) product; shifted windows (Swin) are carried window by
window and through the merging of patches. Limits: it is the same for every class.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass
class _Step:
    """One block's attention (B, L, L) or (B × windows, L, L), mean over heads."""

    block: nn.Module
    attention: Tensor | None = None
    grid: tuple[int, int] = (0, 0)  # (h, w) of a windowed block's input


def has_attention(model: nn.Module) -> bool:
    """Whether the model is made of blocks whose attention can be followed."""
    steps = _find_steps(model)
    if not steps or hasattr(model, "stem"):  # hybrids mix by convolution in between
        return False
    return hasattr(model, "blocks") or all(_is_windowed(step.block) for step in steps)


def roll_out(
    model: nn.Module, images: Tensor, as_grid: Callable[[Tensor], Tensor], token: bool
) -> Tensor:
    """Where the classifier's row of the rollout lies.

    Args:
        model: a timm ViT, EVA or Swin in eval mode.
        images: (B, 3, H, W) normalised floats.
        as_grid: (B, L, C) tokens → (B, C, h, w), prefix tokens off.
        token: whether the head reads the class token, instead of the mean.
    Returns:
        (B, h, w), each map scaled to 0-1.
    Raises:
        ValueError: a model without attention to follow.
    """
    if not has_attention(model):
        raise ValueError(
            f"rollout follows the attention of a ViT, EVA or Swin, but "
            f"{type(model).__name__} has none to follow; use `method` gradcam"
        )
    with torch.no_grad(), _recorded(model) as steps:
        model(images)
    windowed = _is_windowed(steps[0].block)
    flow = _flow_windows(steps) if windowed else as_grid(_flow_tokens(steps, token))
    flow = flow.reshape(len(images), *flow.shape[-2:])  # (B, h, w)
    flow = flow - flow.amin(dim=(1, 2), keepdim=True)
    return flow / flow.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _find_steps(model: nn.Module) -> list[_Step]:
    """Blocks whose attention passes through a dropout, in the order they run."""
    return [
        _Step(module)
        for module in model.modules()
        if isinstance(
            getattr(getattr(module, "attn", None), "attn_drop", None), nn.Module
        )
    ]


def _is_windowed(block: nn.Module) -> bool:
    return hasattr(block, "window_size") and hasattr(block, "shift_size")


@contextlib.contextmanager
def _recorded(model: nn.Module) -> Iterator[list[_Step]]:
    """Blocks that keep their attention of the next pass; left as they were."""
    steps = _find_steps(model)
    fused = [getattr(step.block.attn, "fused_attn", False) for step in steps]
    hooks = []
    for step in steps:
        step.block.attn.fused_attn = False  # type: ignore[union-attr, assignment]
        hooks.append(step.block.register_forward_pre_hook(_keep_grid(step)))
        drop: nn.Module = step.block.attn.attn_drop  # type: ignore[union-attr, assignment]
        hooks.append(drop.register_forward_pre_hook(_keep_attention(step)))
    try:
        yield steps
    finally:
        for hook in hooks:
            hook.remove()
        for step, was in zip(steps, fused, strict=True):
            step.block.attn.fused_attn = was  # type: ignore[union-attr, assignment]


def _keep_attention(step: _Step) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.attention = inputs[0].mean(dim=1).float()  # (B, heads, L, L) -> (B, L, L)

    return keep


def _keep_grid(step: _Step) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.grid = (inputs[0].shape[1], inputs[0].shape[2])

    return keep


def _attention_of(step: _Step) -> Tensor:
    if step.attention is None:
        raise ValueError(
            f"every block should attend once, but {type(step.block).__name__} did "
            "not; use `method` gradcam"
        )
    return step.attention


def _flow_tokens(steps: list[_Step], token: bool) -> Tensor:
    """(B, L, 1) share of each token in what the head reads."""
    shape = _attention_of(steps[-1]).shape
    flow = torch.full(shape[:2], 1 / shape[1], device=_attention_of(steps[-1]).device)
    if token:
        flow = torch.zeros_like(flow)
        flow[:, 0] = 1
    for step in reversed(steps):
        drawn = torch.einsum("bi,bij->bj", flow, _attention_of(step))
        flow = (flow + drawn) / 2
    return flow[..., None]


def _flow_windows(steps: list[_Step]) -> Tensor:
    """(B, h, w) share of each first-stage patch in the mean that the head reads."""
    last = steps[-1]
    windows = -(-last.grid[0] // _sides(last)[0]) * -(-last.grid[1] // _sides(last)[1])
    batch = len(_attention_of(last)) // windows
    flow = torch.ones(batch, *last.grid, device=_attention_of(last).device)
    for step in reversed(steps):
        if flow.shape[1:] != step.grid:  # patches were merged two by two behind it
            flow = flow.repeat_interleave(2, 1).repeat_interleave(2, 2) / 4
            flow = flow[:, : step.grid[0], : step.grid[1]]
        flow = (flow + _attend_windows(flow, step)) / 2
    return flow


def _sides(step: _Step) -> tuple[int, int]:
    tall, wide = step.block.window_size  # type: ignore[misc]
    return int(tall), int(wide)


def _attend_windows(flow: Tensor, step: _Step) -> Tensor:
    """`flow` (B, h, w) through the attention of a block's shifted windows."""
    tall, wide = _sides(step)
    down, right = (int(shift) for shift in step.block.shift_size)  # type: ignore[union-attr]
    batch, height, width = flow.shape
    moved = torch.roll(flow, (-down, -right), (1, 2))
    moved = functional.pad(moved, (0, -width % wide, 0, -height % tall))
    rows, columns = moved.shape[1] // tall, moved.shape[2] // wide
    cells = moved.view(batch, rows, tall, columns, wide).transpose(2, 3)
    cells = cells.reshape(-1, tall * wide)  # (B × windows, L)
    drawn = torch.einsum("bi,bij->bj", cells, _attention_of(step))
    drawn = drawn.view(batch, rows, columns, tall, wide).transpose(2, 3)
    drawn = drawn.reshape(moved.shape)[:, :height, :width]
    return torch.roll(drawn, (down, right), (1, 2))
