"""The fastest way to compute on this machine: precision and memory format.

Which of fp32, bf16 and fp16, which of NCHW and channels-last, and which gradients of
depthwise convolutions are fastest depends on model, batch and processor, so it is
measured with the real model and remembered. Only a candidate whose loss agrees with
fp32 is taken. Limits: the measure is noisy on a busy machine; delete the file to
measure again.
"""

import copy
import platform
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sketchlib import workspace
from sketchlib.training import kernels

PRECISIONS = ("fp32", "bf16", "fp16")
LAYOUTS = ("nchw", "channels_last")
DEPTHWISE = ("torch", "blocks")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
USUAL_BATCH = 32  # pictures, where the batch is still to be found
_PATIENCE = 15.0  # seconds after which nothing is measured a second time
_SECONDS, _STEPS = 8.0, 100  # of the speed a plan counts on, whichever ends first
_LOSS_TOLERANCE = 0.05  # relative; bf16 keeps 8 bits of mantissa


@dataclass(frozen=True)
class Compute:
    """How to run a model.

    Attributes:
        device: torch device name.
        precision: fp32, bf16 or fp16 (autocast; weights stay fp32).
        layout: nchw or channels_last.
        images_per_second: training speed seen in the probe, 0 if not measured.
        depthwise: whose gradients of depthwise convolutions, `torch` or `blocks`.
    """

    device: str
    precision: str
    layout: str
    images_per_second: float
    depthwise: str = "torch"

    @property
    def memory_format(self) -> torch.memory_format:
        last = self.layout == "channels_last"
        return torch.channels_last if last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model`, in place, to the device and layout."""
        if self.depthwise == "blocks":
            kernels.use_blocks(model)
        placed = model.to(device=self.device)
        return placed.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def autocast(self) -> torch.autocast:
        """The context to compute in."""
        dtype = _DTYPES.get(self.precision, torch.bfloat16)
        return torch.autocast(
            self.device, dtype=dtype, enabled=self.precision != "fp32"
        )

    def __str__(self) -> str:
        blocks = ", depthwise gradients in blocks" * (self.depthwise == "blocks")
        return f"{self.precision} {self.layout} on {self.device}{blocks}"


def find_device() -> str:
    """`cuda`, `mps` or `cpu`, the first there is."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def choose_compute(
    model: nn.Module,
    batch: tuple[int, int, int],
    *,
    precision: str,
    layout: str,
    depthwise: str = "auto",
    norm: str = "learn",
    remember: Path,
    timed: bool = False,
) -> Compute:
    """The fastest allowed way to train `model`, measured once per machine and model.

    Args:
        model: not changed.
        batch: (B, C, S) of the training batches; B may be 0, still to be found.
        precision: `auto`, or the only one allowed.
        layout: `auto`, or the only one allowed.
        depthwise: `auto`, or the only one allowed; `blocks` is for CPUs.
        norm: what the recipe does with batch norms; see `loop.Recipe`.
        remember: JSON file of earlier measures.
        timed: measure the speed now, over some seconds; see `measure_speed`.
    Raises:
        ValueError: a name that is neither `auto` nor known.
    """
    device = find_device()
    batch = (batch[0] or USUAL_BATCH, *batch[1:])
    precision = settle_precision(device, precision)
    if device == "cpu":
        kernels.keep_memory()
    allowed = _candidates(device, precision, layout, depthwise, model)
    way = allowed[0]
    if len(allowed) > 1:
        way = _recall(model, batch, norm, allowed, remember)
    if not timed:
        return way
    return replace(way, images_per_second=measure_speed(model, batch, norm, way))


def _recall(
    model: nn.Module,
    batch: tuple[int, int, int],
    norm: str,
    allowed: list[Compute],
    remember: Path,
) -> Compute:
    """The fastest of those allowed, from the file of measures or measured now."""
    named = [str(way) for way in allowed]
    machine = describe_machine()
    key = workspace.hash_value([machine, _signature(model), batch, norm, named])
    known = workspace.read_json(remember) if remember.exists() else {}
    if key not in known:
        known[key] = asdict(_fastest(model, batch, norm, allowed))
        workspace.write_json(remember, known)
    return Compute(**known[key])


def settle_precision(device: str, precision: str) -> str:
    """The precision asked for, or the nearest the device has; says what it lacks."""
    if device != "cuda":
        broken = shutil.which("nvidia-smi") is not None and device == "cpu"
        why = (
            f"torch {torch.__version__} sees no GPU although there is a driver; "
            "install the torch build that fits it"
            if broken
            else "no NVIDIA GPU"
        )
        print(f"notice: {why}; computing on {device}")
        if precision == "fp16" and device == "cpu":
            print("notice: fp16 needs a GPU; computing in fp32")
            return "fp32"
        return precision
    if precision == "bf16" and not torch.cuda.is_bf16_supported(False):
        print(f"notice: {torch.cuda.get_device_name()} has no bf16; computing in fp16")
        return "fp16"
    return precision


def _candidates(
    device: str, precision: str, layout: str, depthwise: str, model: nn.Module
) -> list[Compute]:
    for name, value, choices in (
        ("precision", precision, PRECISIONS),
        ("layout", layout, LAYOUTS),
        ("depthwise", depthwise, DEPTHWISE),
    ):
        if value != "auto" and value not in choices:
            raise ValueError(
                f"`{name}` must be auto or one of {choices}, but {value!r} came"
            )
    precisions = ("fp32", "bf16") if precision == "auto" else (precision,)
    if (
        device == "cuda"
        and precision == "auto"
        and not torch.cuda.is_bf16_supported(False)
    ):
        precisions = ("fp32", "fp16")
    layouts = LAYOUTS if layout == "auto" else (layout,)
    plain = [Compute(device, p, form, 0.0) for p in precisions for form in layouts]
    if device != "cpu" or depthwise == "torch" or not kernels.count_depthwise(model):
        return plain
    blocks = [
        replace(way, depthwise="blocks")
        for way in plain
        if way.layout == "channels_last"
    ]
    return plain + blocks if depthwise == "auto" else blocks or plain


def describe_machine() -> str:
    """What measures of speed hold for: the GPU, or the processor and its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} " + str(
        torch.get_num_threads()
    )


def _signature(model: nn.Module) -> list[object]:
    return [
        type(model).__name__,
        *[list(weight.shape) for weight in model.parameters()],
        sum(weight.requires_grad for weight in model.parameters()),
    ]


def _fastest(
    model: nn.Module, batch: tuple[int, int, int], norm: str, allowed: list[Compute]
) -> Compute:
    fallback = Compute(allowed[0].device, "fp32", "nchw", 0.0)
    reference, _ = _measure(model, batch, norm, fallback)
    results: list[Compute] = []
    started = time.perf_counter()
    for way in allowed * 2:  # twice over, for machines that are shared
        if len(results) >= len(allowed) and time.perf_counter() - started > _PATIENCE:
            break
        loss, speed = _measure(model, batch, norm, way)
        if abs(loss - reference) <= _LOSS_TOLERANCE * max(abs(reference), 1e-3):
            results.append(replace(way, images_per_second=round(speed, 1)))
    return max(results, key=lambda way: way.images_per_second, default=fallback)


def _measure(
    model: nn.Module, batch: tuple[int, int, int], norm: str, way: Compute
) -> tuple[float, float]:
    """(loss of the first step, images a second over the best of three steps)."""
    size = batch[0]
    trial, images = _prepare(model, batch, norm, way)
    losses, seconds = [], []
    for _ in range(4):
        started = time.perf_counter()
        with torch.random.fork_rng(), way.autocast():
            torch.manual_seed(0)  # the same dropout for every candidate
            loss = trial(images).float().pow(2).mean()
        loss.backward()
        losses.append(loss.item())  # waits for the device
        seconds.append(time.perf_counter() - started)
    return losses[0], size / min(seconds[1:])


def _prepare(
    model: nn.Module, batch: tuple[int, int, int], norm: str, way: Compute
) -> tuple[nn.Module, Tensor]:
    """A copy of the model as it trains, and a batch of noise, on the device."""
    size, _, side = batch
    trial = copy.deepcopy(model)
    if norm == "folded":
        kernels.Folded(trial, kernels.make_sample(side))
    trial = way.place(trial).train()
    if norm != "learn":
        kernels.keep_norms_still(trial)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, side, side, generator=generator)
    return trial, images.to(way.device, memory_format=way.memory_format)


def measure_speed(
    model: nn.Module, batch: tuple[int, int, int], norm: str, way: Compute
) -> float:
    """Pictures a second of optimiser steps in a row, which a plan can count on.

    The best of a few steps, good for choosing, promises too much; here all steps of
    some seconds count, after a first one that warms up.
    """
    trial, images = _prepare(model, batch, norm, way)
    weights = [weight for weight in trial.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    started, done = time.perf_counter(), -1
    with torch.random.fork_rng():
        while done < _STEPS and time.perf_counter() - started < _SECONDS:
            with way.autocast():
                loss = trial(images).float().pow(2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
            done += 1
            if done == 0:
                started = time.perf_counter()
    return round(max(done, 1) * batch[0] / (time.perf_counter() - started), 1)
