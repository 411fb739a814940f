"""The one reader: a file becomes uint8 pixels, or a typed error.

Used by the audit, duplicates, cache, training and Grad-CAM alike, so that all see
the same picture: header checked first (format, size), decoded whole by OpenCV with
the EXIF orientation applied, transparency on white paper, 16 bits scaled to 8.
OpenCV fills a truncated JPEG with grey and says nothing, so a JPEG must carry its
end marker. Limits: the first frame of an animation; no SVG.
"""

import io
import os
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = {"JPEG", "MPO", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM"}
MAX_PIXELS = 64_000_000
_JPEG_END = b"\xff\xd9"
Channels = Literal["grey", "colour", "stored"]
# shrinking by the decoder itself: (grey, colour)
_SHRUNK = {
    1: (cv2.IMREAD_GRAYSCALE, cv2.IMREAD_COLOR),
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}


class View(NamedTuple):
    """A decoded picture, perhaps shrunk while decoding.

    Attributes:
        stored: (H, W) or (H, W, 3) uint8, BGR, as OpenCV gives it.
        width: of the whole picture, pixels.
        height: of the whole picture, pixels.
        shrink: 1, 2, 4 or 8: whole pixels to one of `stored`.
        plain: whether it is a JPEG of the ordinary kind; see `jpeg_size`.
    """

    stored: np.ndarray
    width: int
    height: int
    shrink: int
    plain: bool

    def grey(self) -> np.ndarray:
        """(H, W) uint8."""
        if self.stored.ndim == 2:
            return self.stored
        return cv2.cvtColor(self.stored, cv2.COLOR_BGR2GRAY)

    def colour(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB."""
        return _as_channels(self.stored, "colour")


class PictureError(ValueError):
    """A picture that cannot be read; says which file, why, and what to do."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"a readable picture was expected, but {path} {reason}; replace the file "
            "or leave it as it is: it is listed in the findings and kept as a row"
        )


def picture_path(root: Path, relative: str) -> Path:
    """The file behind a manifest path, inside `root`.

    Tries the name as given, then its composed and decomposed Unicode forms, since
    macOS archives store Hangul decomposed.

    Raises:
        PictureError: there is no such file, or a link leads out of `root`.
    """
    return Path(_locate(root, relative)[0])


class Stamped(NamedTuple):
    """A picture's file, seen but not opened.

    Attributes:
        path: as of `picture_path`.
        key: identity of its content: size and time of change; empty when missing.
    """

    path: str
    key: str


def stamp_pictures(root: Path, paths: Iterable[str]) -> list[Stamped]:
    """Where pictures are, and the identity of what they hold; raises nothing."""
    links: dict[str, bool] = {}
    return [_stamp(root, path, links) for path in paths]


def _stamp(root: Path, relative: str, links: dict[str, bool]) -> Stamped:
    try:
        path, found = _locate(root, relative, links)
        found = found or os.stat(path)
    except (PictureError, OSError, ValueError):
        return Stamped(f"{root}/{relative}", "")
    return Stamped(path, f"{found.st_size:x}-{found.st_mtime_ns:x}")


def _locate(
    root: Path, relative: str, links: dict[str, bool] | None = None
) -> tuple[str, os.stat_result | None]:
    """The path, and its state where no link leads there.

    `links` remembers between calls which folders need the slow, resolving check.
    """
    links = {} if links is None else links
    for form in (None, "NFC", "NFD"):
        name = relative if form is None else unicodedata.normalize(form, relative)
        path = f"{root}/{name}"
        try:
            found = os.lstat(path)
        except (OSError, ValueError):
            continue
        folder = name.rpartition("/")[0]
        if folder not in links:
            links[folder] = _has_link(f"{root}", folder)
        if not (stat.S_ISLNK(found.st_mode) or links[folder] or name == ".."):
            return path, found
        if not os.path.exists(path):
            continue
        if not _is_inside(root, Path(path)):
            raise PictureError(Path(path), f"leads out of {root}")
        return path, None
    raise PictureError(root / relative, "does not exist")


def _has_link(root: str, folder: str) -> bool:
    """Whether a folder between needs the slow, resolving check."""
    while folder:
        if folder.endswith("..") or os.path.islink(f"{root}/{folder}"):
            return True
        folder = folder.rpartition("/")[0]
    return False


def _is_inside(root: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def read_picture(path: Path, channels: Channels = "grey") -> np.ndarray:
    """Decode one file.

    Args:
        path: any of JPEG, PNG, BMP, WebP, GIF, TIFF, PPM, whatever its name says.
        channels: `grey` gives (H, W), `colour` gives (H, W, 3) in RGB order, `stored`
            whichever of the two the file holds.
    Returns:
        uint8 pixels, 0 black to 255 white.
    Raises:
        PictureError: not a picture, truncated, or over 64 million pixels.
    """
    return decode_picture(path, read_bytes(path), channels)


def decode_picture(path: Path, data: bytes, channels: Channels = "grey") -> np.ndarray:
    """The pixels of `data`, the content of `path`; see `read_picture`."""
    size = jpeg_size(data)
    if size is not None and size[0] * size[1] <= MAX_PIXELS and _has_end(data):
        buffer = np.frombuffer(data, np.uint8)
        pixels = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise PictureError(path, "cannot be decoded")
        return _as_channels(pixels, channels)
    return _as_channels(_decode_any(path, data), channels)


def _decode_any(path: Path, data: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8, BGR, on white, of a file in any format."""
    header = read_header(path, data)
    if header.mode in ("CMYK", "YCCK", "P", "PA", "1") or header.format == "GIF":
        pixels = _decode_by_pillow(path, data)
    else:
        pixels = _decode_by_opencv(path, data)
    return _on_white(_as_bytes(pixels))


def decode_view(path: Path, data: bytes, least_px: int) -> View:
    """The picture, a plain JPEG halved while it is decoded as long as that is enough.

    A JPEG holds its frequencies, so that half the size costs half the time and gives
    what averaging would. Other formats are decoded whole.

    Args:
        path: names the file in errors.
        data: its content.
        least_px: the longer side of the result stays at or above this.
    """
    layout = _jpeg_layout(data)
    if layout is None or layout[0] * layout[1] > MAX_PIXELS or not _has_end(data):
        pixels = _decode_any(path, data)
        return View(pixels, pixels.shape[1], pixels.shape[0], 1, plain=False)
    width, height, channels = layout
    shrink = 1
    while shrink < 8 and max(width, height) >= 2 * shrink * least_px:
        shrink *= 2
    flag = _SHRUNK[shrink][channels == 3]
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if stored is None:
        raise PictureError(path, "cannot be decoded")
    return View(stored, width, height, shrink, plain=True)


def read_bytes(path: Path) -> bytes:
    """The content of `path`; raises PictureError where that is impossible or empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PictureError(path, "does not exist") from None
    except IsADirectoryError:
        raise PictureError(path, "is a folder") from None
    except OSError as error:
        raise PictureError(path, f"cannot be opened ({error.strerror})") from None
    if not data:
        raise PictureError(path, "is empty (0 bytes)")
    return data


def read_header(path: Path, data: bytes) -> Image.Image:
    """The unread Pillow image of `data`: format, mode and size, checked.

    Raises:
        PictureError: unknown format, more than 64 million pixels, or a JPEG without
            its end marker.
    """
    try:
        header = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise PictureError(path, "claims far over 64 million pixels") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise PictureError(path, "is not a picture in a known format") from None
    if header.format not in FORMATS:
        raise PictureError(path, f"is {header.format}, which is not supported")
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise PictureError(path, f"has {width} × {height} pixels, over 64 million")
    if header.format in ("JPEG", "MPO") and not _has_end(data):
        raise PictureError(path, "is truncated (no JPEG end marker)")
    return header


def check_whole(path: Path, data: bytes) -> None:
    """Raise PictureError where the head is no picture's or the end is missing.

    Decodes nothing, so that thousands of files take seconds; only decoding finds what
    is broken in between.
    """
    size = jpeg_size(data)
    if size is not None and size[0] * size[1] <= MAX_PIXELS and _has_end(data):
        return
    header = read_header(path, data)
    if header.format == "PNG" and b"IEND" not in data[-4096:]:
        raise PictureError(path, "is truncated (no PNG end chunk)")


def _has_end(data: bytes) -> bool:
    return data.rfind(_JPEG_END, max(0, len(data) - 4096)) >= 0


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a plain JPEG, from its markers; None for anything else."""
    layout = _jpeg_layout(data)
    return None if layout is None else layout[:2]


def _jpeg_layout(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, channels) of a plain JPEG, else None.

    Plain: 8 bits, one or three channels, no EXIF. Opening such a file with Pillow
    takes as long as decoding it, so this walk of the markers stands in for it.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3)
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            found = width, height, data[at + 9]
            return found if plain and width and height else None
        exif = marker == 0xE1 and data[at + 4 : at + 8] == b"Exif"
        if exif or not 0xC4 <= marker <= 0xFE or marker == 0xDA:
            return None
        at += 2 + length
    return None


def _decode_by_opencv(path: Path, data: bytes) -> np.ndarray:
    """Pixels as stored: BGR, BGRA or grey, oriented, up to 16 bits."""
    buffer = np.frombuffer(data, np.uint8)
    pixels = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise PictureError(path, "cannot be decoded")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return pixels  # an alpha channel is lost by every flag but UNCHANGED
    if not has_orientation(data):
        return pixels
    upright = cv2.imdecode(buffer, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    return pixels if upright is None else upright


def has_orientation(data: bytes) -> bool:
    """Whether EXIF asks for a turn or a flip; only OpenCV's other flags apply it."""
    if b"Exif" not in data[:65536] and b"eXIf" not in data:
        return False
    return Image.open(io.BytesIO(data)).getexif().get(0x0112, 1) != 1


def _decode_by_pillow(path: Path, data: bytes) -> np.ndarray:
    """BGRA pixels of the modes OpenCV reads differently: palettes, CMYK, 1 bit."""
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        if picture.mode in ("CMYK", "YCCK"):
            picture = picture.convert("RGB")
        rgba = np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(path, f"cannot be decoded ({error})") from None
    return cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA)


def _as_bytes(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.uint16:
        return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    finite = np.nan_to_num(pixels.astype(np.float32), nan=1.0)
    scale = 255.0 if finite.max() <= 1.0 else 1.0
    return np.clip(finite * scale, 0, 255).astype(np.uint8)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1..4) → (H, W) or (H, W, 3), transparency composited on white."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    if pixels.shape[2] == 2:
        pixels = np.dstack([pixels[:, :, :1]] * 3 + [pixels[:, :, 1]])
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[:, :, 3:].astype(np.uint16)
    blended = (pixels[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)


def halve(known: list[np.ndarray], below_px: int) -> list[np.ndarray]:
    """A picture and its halves down to under `below_px`; exact halving is fast.

    Args:
        known: the picture and as many of its halves as are at hand.
        below_px: the longer side of the last one is under it.
    """
    enough = [at for at, level in enumerate(known) if max(level.shape[:2]) < below_px]
    levels = known[: enough[0] + 1] if enough else list(known)
    while max(levels[-1].shape[:2]) >= below_px:
        last = levels[-1]
        half = (max(1, last.shape[0] // 2), max(1, last.shape[1] // 2))
        even = last[: half[0] * 2, : half[1] * 2]
        levels.append(cv2.resize(even, half[::-1], interpolation=cv2.INTER_AREA))
    return levels


def shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """(H, W, …) brought to a smaller size, averaging as INTER_AREA does.

    Bilinear to twice the size, then exact halving: a third to a sixth of the time of
    OpenCV's own averaging, which has no fast path for uneven ratios. The two differ by
    half a grey level to one on average, for ratios up to 4; above, and for whole
    ratios, OpenCV's is taken.
    """
    tall, wide = pixels.shape[:2]
    even = tall % height == 0 and wide % width == 0
    if even or tall > 4 * height or wide > 4 * width:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    twice = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(twice, (width, height), interpolation=cv2.INTER_AREA)


def as_grey(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) RGB → (H, W)."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def _as_channels(pixels: np.ndarray, channels: Channels) -> np.ndarray:
    if channels == "stored" and pixels.ndim == 2:
        return pixels
    if channels == "grey":
        if pixels.ndim == 2:
            return pixels
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(pixels, code)
