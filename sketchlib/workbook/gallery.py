"""The page of all classes: every picture of every class, drawn when scrolled to.

One strip of thumbnails a class, as a file of its own beside a page of lazy images:
five hundred classes open at once on a phone, without a script or a server.
Limits: thumbnails are the cached pixels, not the files.
"""

import html
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from sketchlib import workspace
from sketchlib.data import cache, manifest

_TILE_PX = 72
_COLUMNS = 8
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Every class</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; color: #23272e; margin: 1rem; }}
main {{ display: grid; gap: 1.4rem 2rem;
 grid-template-columns: repeat(auto-fill, minmax(min(100%, {width}px), 1fr)); }}
h2 {{ font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 span {{ color: #5f666e; font-weight: normal; }}
img {{ max-width: 100%; height: auto; display: block; }}
</style></head><body>
<p><a href="01_eda.html">01 · Look at the data</a></p>
<h1>Every class, {classes} classes, {images} drawings</h1>
<main>
{cards}
</main></body></html>
"""


def write_class_page(
    run_dir: Path, table: pd.DataFrame, pixels: cache.PixelCache
) -> Path:
    """Write `classes.html` and its strips into a run folder.

    Returns:
        The page.
    """
    train = manifest.train_rows(table)
    folder = run_dir / "classes"
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run of this name
    folder.mkdir(parents=True)
    cards = []
    for label, name in enumerate(manifest.class_names(table)):
        rows = pixels.rows(train.loc[train["label"] == label, "image_id"])
        strip = make_strip([pixels.pixels[row] for row in rows])
        file = folder / f"{label}.jpg"
        cv2.imwrite(str(file), strip, [cv2.IMWRITE_JPEG_QUALITY, 80])
        cards.append(_make_card(f"{folder.name}/{file.name}", name, len(rows), strip))
    page = _PAGE.format(
        width=_COLUMNS * _TILE_PX, classes=len(cards), images=f"{len(train):,}",
        cards="\n".join(cards),
    )  # fmt: skip
    return workspace.write_text(run_dir / "classes.html", page)


def _make_card(source: str, name: str, count: int, strip: np.ndarray) -> str:
    height, width = strip.shape[:2]
    shown = html.escape(name)
    return (
        f"<section><h2>{shown} <span>{count}</span></h2>"
        f'<img loading="lazy" width="{width}" height="{height}" src="{source}" '
        f'alt="{count} drawings of {shown}"></section>'
    )


def make_strip(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8: the pictures in rows of eight, on white."""
    rows = max(1, math.ceil(len(pictures) / _COLUMNS))
    deep = pictures[0].shape[2:] if len(pictures) else ()
    strip = np.full((rows * _TILE_PX, _COLUMNS * _TILE_PX, *deep), 255, np.uint8)
    inner = _TILE_PX - 4  # a white gap between drawings
    for place, picture in enumerate(pictures):
        small = cv2.resize(picture, (inner, inner), interpolation=cv2.INTER_AREA)
        y, x = (place // _COLUMNS * _TILE_PX, place % _COLUMNS * _TILE_PX)
        strip[y : y + inner, x : x + inner] = small
    return strip if not deep else np.ascontiguousarray(strip[..., ::-1])
