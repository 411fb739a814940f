import io

import cv2
import numpy as np
import pytest
from PIL import Image

from sketchlib.data import images


def save(path, picture, **options):
    picture.save(path, **options)
    return path


@pytest.fixture
def drawing(rng):
    grey = np.full((60, 40), 255, np.uint8)
    cv2.line(grey, (5, 5), (30, 50), 0, 3)
    return Image.fromarray(grey)


def test_f13_all_modes_equal_their_rendering_on_white(tmp_path, drawing):
    expected = np.asarray(drawing)
    transparent = Image.new("RGBA", drawing.size, (0, 0, 0, 0))
    transparent.paste((0, 0, 0, 255), mask=Image.fromarray(255 - expected))
    sixteen = Image.fromarray(expected.astype(np.uint16) * 257)
    made = {
        "l.png": drawing,
        "rgb.png": drawing.convert("RGB"),
        "rgba.png": transparent,
        "la.png": transparent.convert("LA"),
        "one.png": drawing.convert("1"),
        "palette.png": drawing.convert("P"),
        "cmyk.tif": drawing.convert("RGB").convert("CMYK"),
        "sixteen.png": sixteen,
        "animated.gif": drawing,
    }
    for name, picture in made.items():
        grey = images.read_picture(save(tmp_path / name, picture))
        assert grey.shape == (60, 40), name
        assert grey.dtype == np.uint8
        assert np.abs(grey.astype(int) - expected).max() <= 3, name
        colour = images.read_picture(tmp_path / name, "colour")
        assert colour.shape == (60, 40, 3), name


def test_f11_to_f12_broken_files_name_their_reason(tmp_path, drawing):
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    png = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(png, "PNG")
    cases = {
        "empty.jpg": (b"", "is empty"),
        "page.jpg": (b"<html></html>", "not a picture"),
        "drawing.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "tail.jpg": (jpeg[:-10], "truncated"),
        "half.png": (png.getvalue()[:1500], "cannot be decoded"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(images.PictureError, match=reason):
            images.read_picture(tmp_path / name)


def test_f11_a_png_named_jpg_is_read_by_its_content(tmp_path, drawing):
    path = save(tmp_path / "really-png.jpg", drawing, format="PNG")
    assert images.read_picture(path).shape == (60, 40)


def test_f15_a_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    Image.new("1", (12000, 9000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(images.PictureError, match="million"):
        images.read_picture(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_f15_slivers_are_read(tmp_path, size):
    path = save(tmp_path / "sliver.png", Image.new("L", size, 200))
    assert images.read_picture(path).shape == size[::-1]


def test_f7_f17_paths_stay_inside_and_missing_files_are_typed(tmp_path, drawing):
    root = tmp_path / "root"
    root.mkdir()
    save(tmp_path / "secret.png", drawing)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder.jpg").mkdir()
    with pytest.raises(images.PictureError, match="leads out"):
        images.picture_path(root, "link.png")
    with pytest.raises(images.PictureError, match="does not exist"):
        images.picture_path(root, "gone.png")
    with pytest.raises(images.PictureError, match="folder"):
        images.read_picture(root / "folder.jpg")


def test_f9_hangul_is_found_in_either_unicode_form(tmp_path, drawing):
    import unicodedata

    for stored, asked in (("NFD", "NFC"), ("NFC", "NFD")):
        root = tmp_path / stored
        root.mkdir()
        name = "고양이 집 😀.JPEG"
        save(root / unicodedata.normalize(stored, name), drawing, format="JPEG")
        found = images.picture_path(root, unicodedata.normalize(asked, name))
        assert images.read_picture(found).shape == (60, 40)
