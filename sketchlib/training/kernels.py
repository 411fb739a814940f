"""The same network, computed faster on a CPU: depthwise gradients, folded norms.

Measured with torch 2.14 on an AVX512-BF16 processor, the gradients of depthwise
convolutions take three quarters of a bf16 step: the input gradient at stride 2 and
the weight gradient of kernels over 3×3 leave the fast path. `BlockedDepthwise` gets
both from operations that stay on it. `fold_norms` multiplies still batch norms into
the convolutions before them for the length of a training. Limits: square kernels,
stride 1 or 2; what does not fit is left as it is.
"""

import copy
import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.padding import pad_same
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

_BLOCK = 3  # the kernel side whose weight gradient is fast
_FOLD_TOLERANCE = 1e-3  # relative; float32 rounding through a deep network
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_TOP_PAD = -4, -1, -2  # malloc.h


# --- depthwise convolutions -------------------------------------------------


class _Depthwise(torch.autograd.Function):
    """conv2d with one filter a channel; exact gradients by other routes."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w: torch.Tensor, stride: int, padding: int
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, w, None, stride, padding, 1, len(w))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of input (B, C, H, W) and weight (C, 1, k, k)."""
        x, w = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        into_x = into_w = None
        if ctx.needs_input_grad[0]:
            into_x = _input_gradient(grad, x, w, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            into_w = _weight_gradient(grad, x, w, ctx.stride, ctx.padding)
        return into_x, into_w, None, None


def _input_gradient(
    grad: torch.Tensor, x: torch.Tensor, w: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """Stride 2 as stride 1: zeros between the rows of `grad`, the kernel turned."""
    size, channels, side = x.shape[0], len(w), w.shape[-1]
    if stride == 1:
        return _native(grad, x, w, stride, padding, (True, False))[0]
    height, width = (n + 2 * padding - side + 1 for n in x.shape[2:])
    spread = grad.new_zeros((size, height, width, channels)).permute(0, 3, 1, 2)
    spread[:, :, ::stride, ::stride] = grad  # (B, C, H', W')
    turned = w.flip(2, 3)
    return functional.conv2d(spread, turned, None, 1, side - 1 - padding, 1, channels)


def _weight_gradient(
    grad: torch.Tensor, x: torch.Tensor, w: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """A large kernel's gradient put together from overlapping 3×3 blocks of it."""
    side = w.shape[-1]
    if side <= _BLOCK:
        return _native(grad, x, w, stride, padding, (False, True))[1]
    padded = functional.pad(x, (padding,) * 4) if padding else x
    rows, columns = (stride * (n - 1) + _BLOCK for n in grad.shape[2:])
    block = w[:, :, :_BLOCK, :_BLOCK].contiguous()
    found = torch.empty_like(w)
    for i in range(0, side - 1, _BLOCK - 1):
        for j in range(0, side - 1, _BLOCK - 1):
            seen = padded[:, :, i : i + rows, j : j + columns]
            part = _native(grad, seen, block, stride, 0, (False, True))[1]
            found[:, :, i : i + _BLOCK, j : j + _BLOCK] = part
    return found


def _native(
    grad: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    stride: int,
    padding: int,
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Torch's own (input, weight) gradients of a depthwise convolution."""
    return torch.ops.aten.convolution_backward(
        *(grad, x, w, None, [stride] * 2, [padding] * 2, [1, 1]),
        *(False, [0, 0], len(w), [*wanted, False]),
    )[:2]


class BlockedDepthwise(nn.Conv2d):
    """A depthwise `Conv2d` with the faster gradients; parameters are unchanged."""

    same = False  # TensorFlow's padding, which depends on the input's size

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (B, C, H, W)
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else input.dtype
        x, padding = input.to(kind), int(self.padding[0])
        if self.same:
            x, padding = pad_same(x, self.kernel_size, self.stride), 0  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            y = _Depthwise.apply(x, self.weight.to(kind), self.stride[0], padding)
            return y if self.bias is None else y + self.bias.to(kind).view(1, -1, 1, 1)


def use_blocks(model: nn.Module) -> int:
    """Give every depthwise convolution of `model` the faster gradients, in place.

    Returns:
        How many there are; names and shapes of the parameters do not change.
    """
    found = [module for module in model.modules() if _fits(module)]
    for module in found:
        same = type(module).__name__ == "Conv2dSame"
        module.__class__ = BlockedDepthwise
        module.same = same  # type: ignore[assignment]
    return len(found)


def count_depthwise(model: nn.Module) -> int:
    """How many convolutions `use_blocks` would change."""
    return sum(_fits(module) for module in model.modules())


def _fits(module: nn.Module) -> bool:
    if type(module).__name__ not in ("Conv2d", "Conv2dSame"):
        return False
    conv: Any = module
    side, stride = conv.kernel_size, conv.stride
    padding = conv.padding if not isinstance(conv.padding, str) else (-1, -1)
    return (
        1 < conv.groups == conv.in_channels == conv.out_channels
        and side[0] == side[1]
        and side[0] % 2 == 1
        and stride[0] == stride[1] <= 2
        and 0 <= padding[0] == padding[1] < side[0]
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


# --- batch norms ------------------------------------------------------------


def keep_norms_still(model: nn.Module) -> None:
    """Normalise with the statistics there are, and do not touch them."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class Folded:
    """Batch norms multiplied into the convolutions before them, and the way back.

    With statistics that stand still a batch norm is a factor and an offset for each
    channel. Inside the convolution they cost nothing; `restore` puts a norm of
    mean 0 and deviation 1 back, so that the weights fit the architecture again.
    Where a norm does not follow its convolution, nothing is folded at all.
    """

    def __init__(self, model: nn.Module, sample: torch.Tensor) -> None:
        """Fold in place, if the outputs on `sample` (B, 3, S, S) stay as they are."""
        self._pairs: list[_Pair] = []
        training = model.training
        model.eval()
        with torch.no_grad():
            before = model(sample)
            for parent in list(model.modules()):
                self._pairs += _fold_children(parent)
            after = model(sample) if self._pairs else before
        model.train(training)
        worst = float((before - after).abs().max() / before.abs().max().clamp(1e-6))
        if worst > _FOLD_TOLERANCE:
            self._undo()

    def __len__(self) -> int:
        return len(self._pairs)

    def _undo(self) -> None:
        for pair in self._pairs:
            pair.conv.weight, pair.conv.bias = pair.weight, pair.bias
            pair.parent._modules[pair.name] = pair.norm
        self._pairs = []

    def restore(self) -> None:
        """Put the batch norms back; the network computes the same as it does now."""
        with torch.no_grad():
            for pair in self._pairs:
                offset: Any = pair.conv.bias
                pair.norm.running_mean.zero_()
                pair.norm.running_var.fill_(1.0 - pair.norm.eps)
                pair.norm.weight.fill_(1.0)
                pair.norm.bias.copy_(offset)
                pair.norm.to(offset.device)
                pair.conv.bias = None
                if pair.bias is not None:
                    pair.conv.bias = nn.Parameter(torch.zeros_like(offset))
                pair.parent._modules[pair.name] = pair.norm
        self._pairs = []


@dataclass(frozen=True)
class _Pair:
    """A norm below `parent`, the convolution before it, and what that one had."""

    parent: nn.Module
    name: str
    norm: Any
    conv: nn.Conv2d
    weight: Any
    bias: Any


def _fold_children(parent: nn.Module) -> list[_Pair]:
    """Fold each norm that is listed right after a convolution of its width."""
    pairs, names = [], list(parent._modules)
    for first, second in zip(names, names[1:], strict=False):
        conv, norm = parent._modules[first], parent._modules[second]
        if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        known = norm.running_mean is not None and norm.affine
        if known and norm.num_features == conv.out_channels:
            pairs.append(_Pair(parent, second, norm, conv, conv.weight, conv.bias))
            _fold(conv, norm)
            parent._modules[second] = getattr(norm, "act", None) or nn.Identity()
    return pairs


def fold_for_inference(model: nn.Module, side_px: int) -> nn.Module:
    """`model` in eval mode; a copy with its batch norms folded, where it has such."""
    model.eval()
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    copied = copy.deepcopy(model)
    Folded(copied, make_sample(side_px).to(next(copied.parameters()).device))
    return copied


def make_sample(side_px: int) -> torch.Tensor:
    """(1, 3, S, S) of every value from -2 to 2: enough to tell two networks apart."""
    return torch.linspace(-2, 2, 3 * side_px**2).view(1, 3, side_px, side_px)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    weight, bias = fuse_conv_bn_weights(
        *(conv.weight, conv.bias, norm.running_mean, norm.running_var),
        *(norm.eps, norm.weight, norm.bias),
    )
    learns = conv.weight.requires_grad  # what is frozen stays so
    conv.weight = nn.Parameter(weight.detach().clone(), requires_grad=learns)
    conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=learns)


# --- memory -----------------------------------------------------------------


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next step, where it is glibc.

    Activations of a batch are large blocks, which it otherwise returns to the system
    after every step and zeroes anew in the next; a fifth of a step on two cores.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))
    done = [mallopt(key, value) for key, value in settings]
    return done == [1] * len(settings)
