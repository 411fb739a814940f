"""Turn the ink of an icon into a hand-like sketch, and a sketch into a near copy.

What scans and scraped sketches have: tilt, uneven lines, shading in strokes, pencil
grain, paper, marks of the seller; and the copies found in the competition's data
(flips above all). Everything follows from the generator given.
Limits: the strokes are a filter over an icon, not a model of a hand.
"""

import dataclasses

import cv2
import numpy as np

MARKS = ("SAMPLE", "sketch no. 7", "(c) studio", "preview", "draft", "for review")
COPY_KINDS = (
    "exact",
    "hflip",
    "vflip",
    "rot90",
    "rot180",
    "rotated",
    "recompressed",
    "resized",
    "cropped",
    "text",
)
_TURNS = {
    "hflip": lambda image: image[:, ::-1],
    "vflip": lambda image: image[::-1],
    "rot90": lambda image: np.rot90(image),
    "rot180": lambda image: image[::-1, ::-1],
}


@dataclasses.dataclass(frozen=True)
class Look:
    """What is odd about a picture: its ground, its ink, a text mark."""

    ground: str  # white, paper or inverted
    coloured: bool
    text: str  # "" for none

    @property
    def oddities(self) -> tuple[str, ...]:
        """The names under which the truth lists this look."""
        ground = () if self.ground == "white" else (self.ground,)
        ink = ("coloured",) if self.coloured else ()
        return ground + ink + (("text",) if self.text else ())


def choose_look(rng: np.random.Generator) -> Look:
    """Mostly grey on white; every fifth picture is odd in some way."""
    draw, mark = rng.random(2)
    text = MARKS[rng.integers(len(MARKS))] if mark < 0.04 else ""
    ground = "inverted" if draw < 0.05 else "paper" if draw < 0.13 else "white"
    return Look(ground, bool(0.13 <= draw < 0.19), text)


# --- a sketch ---------------------------------------------------------------


def draw_sketch(ink: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Draw one sketch.

    Args:
        ink: uint8 (H, W) of an icon, 255 is ink.
        look: ground, ink colour and text mark.
        rng: decides size, tilt, line weight, distortion, grain.
    Returns:
        uint8, (H, W) for grey pictures and (H, W, 3) BGR for coloured ones and some
        grey ones; sides 160-430 px.
    """
    size = _choose_size(rng)
    strokes = _set_weight(_shade(ink, rng), rng)
    return _finish(strokes, size, look, rng)


def draw_lines(
    ink: np.ndarray, look: Look, width_px: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw one sketch of the outline alone, in lines of one weight.

    Args:
        ink: uint8 (H, W) of an icon, 255 is ink.
        look: ground, ink colour and text mark.
        width_px: of the lines, of an icon of 256 px; odd.
        rng: decides size, tilt, distortion, grain.
    Returns:
        As `draw_sketch`.
    """
    size = _choose_size(rng)
    padded = np.pad(ink, 8 + width_px)
    solid = np.where(padded > 127, 255, 0).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width_px, width_px))
    edges = cv2.morphologyEx(solid, cv2.MORPH_GRADIENT, disc)
    return _finish(edges, size, look, rng)


def _finish(
    strokes: np.ndarray, size: tuple[int, int], look: Look, rng: np.random.Generator
) -> np.ndarray:
    """Strokes on a page: placed, with grain, on their ground, marked."""
    strokes = _warp(strokes, size, rng)
    strokes = _grain(strokes, rng)
    picture = _lay_down(strokes, look, rng)
    if look.text:
        picture = _write(picture, look.text, rng)
    if picture.ndim == 2 and rng.random() < 0.25:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    return picture


def encode_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """JPEG bytes; one channel for (H, W), three for (H, W, 3)."""
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes any uint8 picture of these sizes"
    return data.tobytes()


def _choose_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width in px; a fifth square, the rest up to 3:4."""
    long_side = int(rng.integers(215, 431))
    aspect = 1.0 if rng.random() < 0.2 else rng.uniform(0.75, 1.0)
    short_side = max(160, round(long_side * aspect))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)


def _shade(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give half of the pictures hatched insides where the icon is solid."""
    ink = np.pad(ink, 8)  # room for thicker lines
    hatched = rng.random() < 0.5
    angle, period_px, rim_px = rng.uniform(0.2, 1.4), rng.uniform(6, 13), 13
    if not hatched:
        return ink
    inside = cv2.erode(ink, np.ones((rim_px, rim_px), np.uint8))
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period_px))
    stripes = np.where(wave > 0.1, 0.0, rng.uniform(0.5, 0.85))
    paler = cv2.GaussianBlur(stripes.astype(np.float32), (0, 0), 1.0)
    return np.clip(ink - inside * paler, 0, 255).astype(np.uint8)


def _set_weight(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Thicken by 0-6 of 256 px; a dilation keeps grey fills grey."""
    width_px = int(rng.integers(0, 4)) * 2 + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width_px, width_px))
    return cv2.dilate(ink, disc) if width_px > 1 else ink


def _warp(
    ink: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Place the ink on a page: tilt, stretch, margins, and a smooth distortion."""
    height, width = size
    side = rng.uniform(0.62, 0.86) * min(size)
    scale = side / max(ink.shape) * rng.uniform(0.93, 1.07, 2)  # along x, y
    tilt = np.deg2rad(np.clip(rng.normal(0, 6), -14, 14))
    free_x, free_y = (width - side) / 2, (height - side) / 2
    center_x = width / 2 + rng.uniform(-0.6, 0.6) * free_x
    center_y = height / 2 + rng.uniform(-0.6, 0.6) * free_y
    bend_x, bend_y = (_bend(size, side, rng) for _ in range(2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - center_x + bend_x, y - center_y + bend_y
    map_x = (x * np.cos(tilt) + y * np.sin(tilt)) / scale[0] + ink.shape[1] / 2
    map_y = (y * np.cos(tilt) - x * np.sin(tilt)) / scale[1] + ink.shape[0] / 2
    smooth = cv2.GaussianBlur(ink, (0, 0), max(0.4, 0.45 / float(scale.min())))
    return cv2.remap(
        smooth, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR
    )


def _bend(size: tuple[int, int], side: float, rng: np.random.Generator) -> np.ndarray:
    """Displacement in px: one slow wave of the page, one tremble of the hand."""
    slow = rng.normal(0, 0.018 * side, (5, 5)).astype(np.float32)
    tremble = rng.normal(0, 0.004 * side, (24, 24)).astype(np.float32)
    shape = (size[1], size[0])
    return cv2.resize(slow, shape, interpolation=cv2.INTER_CUBIC) + cv2.resize(
        tremble, shape, interpolation=cv2.INTER_CUBIC
    )


def _grain(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Coverage 0-1 of the ink, broken up by the tooth of the paper."""
    strength = rng.uniform(0.0, 0.35)
    noise = rng.standard_normal(ink.shape, np.float32)
    tooth = cv2.GaussianBlur(noise, (0, 0), 0.8) * 1.8  # spread back to about 0.8
    return ink.astype(np.float32) / 255 * np.clip(1 - strength * (0.6 + tooth), 0, 1)


def _lay_down(strokes: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Ink on its ground; colours are BGR, a grey picture stays (H, W)."""
    tone = rng.uniform(20, 110)
    page = np.full(strokes.shape, 255, np.float32)
    if look.ground == "paper":
        page = _paper(strokes.shape, rng)
    picture = page + (tone - page) * strokes
    if look.ground == "inverted":
        picture = 255 - picture
    if look.coloured:
        hsv = [rng.integers(180), rng.integers(120, 256), 150]
        hue = np.array(hsv, np.uint8).reshape(1, 1, 3)
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
        picture = page[..., None] + (colour - page[..., None]) * strokes[..., None]
    elif look.ground == "paper" and rng.random() < 0.5:
        cream = np.array([0.86, 0.95, 1.0], np.float32)
        picture = picture[..., None] * cream
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def _paper(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A tone of 150-235 with stains and fibres."""
    stains = rng.normal(0, 5, (4, 4)).astype(np.float32)
    fibres = rng.standard_normal(shape, np.float32) * rng.uniform(1, 5)
    tone = rng.uniform(150, 235)
    return tone + fibres + cv2.resize(stains, shape[::-1])


def _write(picture: np.ndarray, text: str, rng: np.random.Generator) -> np.ndarray:
    """Put a seller's mark somewhere over the picture."""
    height, width = picture.shape[:2]
    scale = width / 300 * rng.uniform(0.45, 0.8)
    place = (
        int(rng.uniform(0.03, 0.35) * width),
        int(rng.uniform(0.15, 0.95) * height),
    )
    grey = int(rng.integers(70, 150))
    font = cv2.FONT_HERSHEY_SIMPLEX
    shade = (grey,) * 3
    return cv2.putText(picture.copy(), text, place, font, scale, shade, 1, cv2.LINE_AA)


# --- a copy -----------------------------------------------------------------


def copy_jpeg(original: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of a JPEG as found in scraped data.

    Args:
        original: the bytes of a JPEG file.
        kind: one of `COPY_KINDS`; `exact` returns the same bytes.
        rng: decides amounts and the quality of the new file.
    Returns:
        The bytes of a JPEG with the same number of channels.
    """
    if kind == "exact":
        return original
    data = np.frombuffer(original, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert picture is not None, "only whole files are copied"
    if kind == "recompressed":
        return encode_jpeg(picture, int(rng.integers(30, 56)))
    changed = _change(picture, kind, rng)
    return encode_jpeg(np.ascontiguousarray(changed), int(rng.integers(80, 96)))


def _change(picture: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    height, width = picture.shape[:2]
    if kind in _TURNS:
        return _TURNS[kind](picture)
    if kind == "text":
        return _write(picture, MARKS[rng.integers(len(MARKS))], rng)
    if kind == "resized":
        factor = max(rng.uniform(0.6, 0.85), 160 / min(height, width))
        return cv2.resize(
            picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA
        )
    if kind == "cropped":
        top, bottom, left, right = rng.uniform(0.02, 0.06, 4)
        rows = slice(round(top * height), round((1 - bottom) * height))
        return picture[rows, round(left * width) : round((1 - right) * width)]
    assert kind == "rotated", f"{kind!r} is not a kind of copy"
    degrees = rng.uniform(3, 7) * rng.choice([-1, 1])
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return cv2.warpAffine(
        picture, turn, (width, height), borderMode=cv2.BORDER_REPLICATE
    )
