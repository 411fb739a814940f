"""Faults 11-18: pictures that are broken, odd or out of reach."""

import io
import threading

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from sketchlib.analysis import gradcam
from sketchlib.data import audit, cache, duplicates, images
from sketchlib.training import datasets
from sketchlib.workbook import doctor

GEOMETRY = cache.Geometry(48, "ink", "grey", "white")


def sketch(width=120, height=120):
    picture = np.full((height, width), 255, np.uint8)
    cv2.line(picture, (width // 5, height // 5), (width // 2, height // 2), 0, 4)
    cv2.circle(picture, (width // 2, height // 2), min(width, height) // 4, 0, 3)
    return picture


def jpeg(picture, **options):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png(picture):
    return cv2.imencode(".png", picture)[1].tobytes()


def inspect(folder, files, **options):
    """The findings and the cached pixels of files given as bytes."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    table = pd.DataFrame({"image_id": list(files), "path": list(files)})
    made = {"cache_dir": folder / "cache", "geometry": GEOMETRY, **options}
    seen = audit.inspect(table, folder, **made)
    pixels = cache.open_pixels(table, folder, GEOMETRY, folder / "cache")
    return seen.findings.set_index("image_id"), pixels


NOISE = np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8)
BROKEN = {
    "f11 nothing": (b"", "empty"),
    "f11 a page": (b"<html>not found</html>", "not a picture"),
    "f11 svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "f12 half a jpeg": (jpeg(sketch())[:900], "truncated"),
    "f12 ten bytes less": (jpeg(sketch())[:-10], "truncated"),
    "f12 half a large jpeg": (jpeg(sketch(900, 700))[:9000], "truncated"),
    "f12 half a png": (png(NOISE)[:3000], "cannot be decoded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_rows_with_a_reason_and_never_pixels(tmp_path, case):
    content, reason = BROKEN[case]
    found, pixels = inspect(tmp_path, {"a.jpg": content, "b.jpg": jpeg(sketch())})
    assert found["readable"].tolist() == [False, True]
    assert reason in found.loc["a.jpg", "problem"]
    assert pixels.readable.tolist() == [False, True]
    assert (pixels.pixels[0] == 255).all()


def test_f12_the_doctor_names_broken_files_and_passes_whole_ones(
    own_world, capsys, monkeypatch
):
    monkeypatch.setattr(doctor, "_list_checks", _only_the_data)
    table = own_world / "train" / "cross"
    (table / "sketch_5.JPEG").write_bytes(png(NOISE)[:3000])
    (table / "sketch_6.JPEG").write_bytes(jpeg(sketch())[:-10])
    assert doctor.examine(str(own_world)) == 1
    told = capsys.readouterr().out
    assert "bad 3 of 56 pictures" in told  # one is broken from the start
    assert "sketch_5.JPEG is truncated (no PNG end chunk)" in told
    assert "sketch_6.JPEG is truncated (no JPEG end marker)" in told
    for path in (table / "sketch_5.JPEG", table / "sketch_6.JPEG"):
        path.write_bytes(jpeg(sketch()))
    (own_world / "train" / "square" / "sketch_3.JPEG").write_bytes(png(sketch()))
    assert doctor.examine(str(own_world)) == 0
    assert "56 pictures have a head and an end" in capsys.readouterr().out


def _only_the_data(data_dir, plan_name):
    return [lambda: doctor._check_data(data_dir)]


def test_f11_a_png_named_jpg_is_decoded_by_its_content(tmp_path):
    found, _ = inspect(tmp_path, {"a.jpg": png(sketch()), "b.png": jpeg(sketch())})
    assert found["readable"].all()


def _modes():
    grey = Image.fromarray(sketch(300, 200))
    ink = Image.fromarray(255 - sketch(300, 200))
    clear = Image.new("RGBA", grey.size, (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), mask=ink)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [Image.new("L", grey.size, 0)]}
    return {
        "16 bit": (wide, "PNG", {}),
        "1 bit": (grey.convert("1"), "PNG", {}),
        "palette": (clear.quantize(16), "PNG", {}),
        "LA": (clear.convert("LA"), "PNG", {}),
        "RGBA": (clear, "PNG", {}),
        "CMYK": (grey.convert("RGB").convert("CMYK"), "TIFF", {}),
        "CMYK JPEG": (grey.convert("RGB").convert("CMYK"), "JPEG", {"quality": 98}),
        "animated": (grey, "GIF", frames),
    }


@pytest.mark.parametrize("mode", _modes())
def test_f13_modes_equal_their_rendering_on_white(tmp_path, mode):
    picture, kind, options = _modes()[mode]
    picture.save(tmp_path / "a", kind, **options)
    pixels = images.read_picture(tmp_path / "a")
    off = np.abs(pixels.astype(int) - sketch(300, 200))
    assert (off > 60).mean() < 0.01, mode
    found, _ = inspect(tmp_path, {"a": (tmp_path / "a").read_bytes()})
    assert found["flags"].iloc[0] == ""


TURNS = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_90],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_270],
}


@pytest.mark.parametrize("orientation", TURNS)
def test_f14_orientations_are_undone_in_reader_cache_and_audit(tmp_path, orientation):
    plain = sketch(640, 560)
    stored = Image.fromarray(plain)
    for step in TURNS[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(np.asarray(stored), quality=97, exif=exif)
    found, pixels = inspect(tmp_path, {"a.jpg": content, "b.png": png(plain)})
    sizes = found[["width", "height"]].to_numpy().tolist()
    assert sizes == [[640, 560]] * 2
    near = np.abs(pixels.pixels[0].astype(int) - pixels.pixels[1])
    assert near.mean() < 3


def test_f15_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    header = bytearray(png(np.zeros((4, 4), np.uint8)))
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    monkeypatch.setattr(images.cv2, "imdecode", None)
    (tmp_path / "a.png").write_bytes(header)
    with pytest.raises(images.PictureError, match=r"pixels|known format"):
        images.read_picture(tmp_path / "a.png")


def test_f15_a_picture_over_64_million_pixels_is_flagged_undecoded(
    tmp_path, monkeypatch
):
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000), 1).save(buffer, "PNG")
    monkeypatch.setattr(images, "_decode_by_pillow", None)
    found, pixels = inspect(tmp_path, {"a.png": buffer.getvalue()})
    assert found["flags"].iloc[0] == "unreadable"
    assert "12000 × 12000 pixels, over 64 million" in found["problem"].iloc[0]
    assert pixels.readable.tolist() == [False]


def test_f15_a_picture_of_fifty_million_pixels_works(tmp_path):
    page = np.full((7_000, 7_100), 255, np.uint8)
    cv2.circle(page, (3_500, 3_500), 2_500, 0, 60)
    found, pixels = inspect(tmp_path, {"a.jpg": cv2.imencode(".jpg", page)[1]})
    assert found["flags"].iloc[0] == ""
    assert (pixels.pixels[0] < 128).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_f15_slivers_are_read_and_flagged(tmp_path, shape):
    found, pixels = inspect(tmp_path, {"a.png": png(np.full(shape, 255, np.uint8))})
    assert "tiny" in found["flags"].iloc[0]
    assert pixels.readable.all()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_f16_blank_black_and_inverted_pictures_are_flagged_without_nan(tmp_path):
    files = {
        "white.png": png(np.full((90, 90), 255, np.uint8)),
        "black.png": png(np.zeros((90, 90), np.uint8)),
        "inverted.png": png(255 - sketch()),
        "plain.png": png(sketch()),
    }
    found, pixels = inspect(tmp_path, files)
    assert found["flags"].tolist() == ["blank", "blank;inverted", "inverted", ""]
    numbers = found.select_dtypes("number").drop(columns="problem", errors="ignore")
    assert np.isfinite(numbers.to_numpy()).all()
    assert np.abs(pixels.pixels[2].astype(int) - pixels.pixels[3]).mean() < 2


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("method", gradcam.METHODS)
def test_f16_blank_and_black_pictures_have_maps_without_nan(method):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    pages = torch.stack([torch.full((1, 64, 64), level) for level in (0, 255)])
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    inputs = datasets.to_input(pages.to(torch.uint8), mean, std)
    assert torch.isfinite(inputs).all()
    maps = gradcam.make_cam(model, inputs, torch.tensor([0, 1]), method=method)
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() <= 1


def test_f16_blank_pictures_have_no_pairs(tmp_path):
    sheet = np.full((90, 90), 255, np.uint8)
    table = pd.DataFrame({"image_id": ["a.png", "b.png"], "path": ["a.png", "b.png"]})
    for name in table["path"]:
        (tmp_path / name).write_bytes(png(sheet))
    seen = audit.inspect(table, tmp_path)
    assert duplicates.find_pairs(seen.findings, seen.thumbs).empty


def test_f17_a_vanished_an_unreadable_and_a_folder_are_named(tmp_path, monkeypatch):
    for name in ("gone.jpg", "locked.jpg", "fine.jpg"):
        (tmp_path / name).write_bytes(jpeg(sketch()))
    (tmp_path / "folder.jpg").mkdir()
    names = ["gone.jpg", "locked.jpg", "folder.jpg", "fine.jpg"]
    table = pd.DataFrame({"image_id": names, "path": names})
    audit.inspect(table, tmp_path)
    (tmp_path / "gone.jpg").unlink()
    original = images.Path.read_bytes

    def deny(path):
        if path.name == "locked.jpg":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(images.Path, "read_bytes", deny)
    problems = audit.measure(table, tmp_path)["problem"].tolist()
    for problem, words in zip(
        problems,
        ("does not exist", "Permission denied", "is a folder", ""),
        strict=True,
    ):
        assert words in problem
    kept = cache.open_pixels(table, tmp_path, GEOMETRY, tmp_path / "cache")
    assert kept.readable.tolist() == [False, False, False, True]


def test_f18_a_disk_that_does_not_answer_ends_the_pass(tmp_path, monkeypatch):
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(png(sketch()))
    table = pd.DataFrame({"image_id": names, "path": names})
    store, answers, original = tmp_path / "cache", threading.Event(), images.read_bytes

    def stall(path):
        if path.name == "39.png":
            answers.wait(20)
        return original(path)

    monkeypatch.setattr(images, "read_bytes", stall)
    try:
        with pytest.raises(TimeoutError, match=r"39\.png.*does not answer.*local disk"):
            audit.inspect(table, tmp_path, cache_dir=store, patience=2.0)
    finally:
        answers.set()
    read = []
    monkeypatch.setattr(
        images, "read_bytes", lambda path: read.append(path.name) or original(path)
    )
    assert audit.measure(table, tmp_path, cache_dir=store)["readable"].all()
    assert len(read) <= 8  # what was read before the stall is kept
