"""Find the demo's icons in installed wheels and draw one as ink.

Sources: the icon packs of the `demo` extra, and the symbols of DejaVu Sans, which
comes with matplotlib; which icons, per class, stands in `demo_classes.yaml`.
Packages are located and read as files, never imported (qtawesome would load Qt).
Limits: single-coloured icons only; colour inside an SVG is read as darkness.
"""

import dataclasses
import functools
import importlib.util
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

ICON_SIDE_PX = 256


@dataclasses.dataclass(frozen=True)
class Pack:
    """One icon set: who made it, and the file of which package holds it.

    `maker` joins the sets whose icons are versions of each other.
    """

    author: str
    licence: str
    module: str
    file: str = "icons.zip"
    maker: str = ""


_CC_BY, _APACHE, _MIT = "CC-BY-4.0", "Apache-2.0", "MIT"
_FA = ("Fonticons, Inc.", _CC_BY)
_FONTS = "fonts/{}-[0-9]*.ttf"
PACKS = {
    "bootstrap": Pack("The Bootstrap Authors", _MIT, "bsicons", "icons"),
    "codicon": Pack("Microsoft", _CC_BY, "qtawesome", _FONTS.format("codicon")),
    "dejavu": Pack(
        "DejaVu fonts team; Bitstream",
        "Bitstream-Vera",
        "matplotlib",
        "mpl-data/fonts/ttf/DejaVuSans.ttf",
    ),
    "elusive": Pack(
        "Team Redux", "OFL-1.1", "qtawesome", _FONTS.format("elusiveicons-webfont")
    ),
    "font-awesome": Pack(*_FA, "justmyresource_font_awesome", maker="font-awesome"),
    "font-awesome-5-regular": Pack(
        *_FA,
        "qtawesome",
        _FONTS.format("fontawesome5-regular-webfont"),
        "font-awesome",
    ),
    "font-awesome-5-solid": Pack(
        *_FA, "qtawesome", _FONTS.format("fontawesome5-solid-webfont"), "font-awesome"
    ),
    "heroicons": Pack("Tailwind Labs", _MIT, "justmyresource_heroicons"),
    "lucide": Pack("Lucide Contributors", "ISC", "justmyresource_lucide"),
    "material-icons": Pack(
        "Google", _APACHE, "justmyresource_material_icons", maker="material"
    ),
    "mdi": Pack("Pictogrammers", _APACHE, "justmyresource_mdi", maker="material"),
    "phosphor": Pack("Phosphor Icons", _MIT, "justmyresource_phosphor"),
    "remix": Pack("Remix Design", _APACHE, "qtawesome", _FONTS.format("remixicon")),
}


# --- which icons ------------------------------------------------------------


@functools.cache
def read_classes() -> dict[str, tuple[str, ...]]:
    """The drawings of every class, as `pack:name`, classes in sorted order."""
    text = Path(__file__).with_name("demo_classes.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, str]] = yaml.safe_load(text)
    return {
        name: tuple(f"{pack}:{icon}" for pack in packs for icon in packs[pack].split())
        for name, packs in sorted(table.items())
    }


def family_of(drawing: str) -> str:
    """The design that `drawing` is a version of (filled, outlined, duotone).

    By name only: two designers' similar hearts are two families.
    """
    pack, _, name = drawing.partition(":")
    base = name.rpartition("/")[2]
    base = re.sub(r"(-fill|-line|-outline|-duotone)$", "", base)
    return f"{PACKS[pack].maker or pack}:{base}"


def check_packs() -> None:
    """Raise ModuleNotFoundError unless everything in the `demo` extra is installed."""
    needed = sorted({"resvg_py"} | {pack.module for pack in PACKS.values()})
    missing = [module for module in needed if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"the demo data set is drawn from icon packages, of which "
            f"{', '.join(missing)} could not be found in this Python; install them "
            'with `pip install -e ".[demo]"`',
            name=missing[0],
        )


# --- one icon ---------------------------------------------------------------


def read_ink(drawing: str) -> np.ndarray:
    """Draw one icon, cut to its ink; 255 is full ink, 0 is bare ground.

    Args:
        drawing: `pack:name` as in `read_classes`.
    Returns:
        uint8 (H, W), the longer side about `ICON_SIDE_PX`.
    Raises:
        KeyError: the installed pack has no icon of that name.
    """
    pack, _, name = drawing.partition(":")
    try:
        if PACKS[pack].file.endswith(".ttf"):
            ink = _draw_glyph(pack, name)
        else:
            ink = _draw_svg(_read_svg(pack, name))
    except (KeyError, FileNotFoundError) as error:
        raise KeyError(
            f"icon `{name}` was expected in the package `{PACKS[pack].module}`, but "
            "the installed version has none of that name; install the versions "
            "listed in requirements.txt"
        ) from error
    rows, columns = np.flatnonzero(ink.max(1)), np.flatnonzero(ink.max(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _draw_svg(svg: str) -> np.ndarray:
    import resvg_py  # here, so that a missing extra is told by check_packs

    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=ICON_SIDE_PX,
        height=ICON_SIDE_PX,
        skip_system_fonts=True,
    )
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.uint16)
    darkness = 255 - rgba[..., :3].max(axis=-1)
    return (rgba[..., 3] * darkness // 255).astype(np.uint8)


def _draw_glyph(pack: str, name: str) -> np.ndarray:
    font, codes = _open_font(pack)
    mark = chr(int(codes[name] if codes else name, 16))
    left, top, right, bottom = font.getbbox(mark)
    size = (int(right - left) + 4, int(bottom - top) + 4)
    page = Image.new("L", size)
    ImageDraw.Draw(page).text((2 - left, 2 - top), mark, font=font, fill=255)
    return np.asarray(page)


def _read_svg(pack: str, name: str) -> str:
    folder = _package_folder(PACKS[pack].module)
    if PACKS[pack].file.endswith(".zip"):
        return _open_zip(folder / PACKS[pack].file).read(f"{name}.svg").decode()
    return (folder / PACKS[pack].file / f"{name}.svg").read_text(encoding="utf-8")


@functools.cache
def _open_zip(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@functools.cache
def _open_font(pack: str) -> tuple[ImageFont.FreeTypeFont, dict[str, str]]:
    """The font of a pack and its names' code points; no names for plain fonts."""
    found = sorted(_package_folder(PACKS[pack].module).glob(PACKS[pack].file))
    if not found:
        raise FileNotFoundError(PACKS[pack].file)
    path = found[-1]
    codes = path.with_name(re.sub(r"-([\d.]+)\.ttf$", r"-charmap-\1.json", path.name))
    names = json.loads(codes.read_text("utf-8")) if codes != path else {}
    return ImageFont.truetype(str(path), ICON_SIDE_PX), names


@functools.cache
def _package_folder(module: str) -> Path:
    """Where a package's files are, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        check_packs()
        raise FileNotFoundError(f"the package {module} has no folder")
    return Path(spec.submodule_search_locations[0])
