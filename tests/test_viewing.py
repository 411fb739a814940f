import cv2
import numpy as np
import pytest
import torch

from sketchlib.training import viewing


@pytest.fixture
def drawing():
    picture = np.full((64, 64), 255, np.uint8)
    cv2.line(picture, (10, 32), (54, 32), 0, 3)
    cv2.circle(picture, (40, 20), 6, 60, 2)
    return picture


def as_batch(picture):
    return torch.from_numpy(picture[None, None].copy())


def test_each_flip_is_tilted_to_one_side():
    assert viewing.spell([]) == []
    assert viewing.spell(["hflip"]) == ["hflip"]
    assert viewing.spell(["vflip", "hflip"]) == ["vflip", "hflip"]
    assert viewing.spell(["tilt"]) == ["left", "right"]
    every = ["hflip", "vflip", "left", "hflip+right", "vflip+left"]
    assert viewing.spell(["hflip", "tilt", "vflip"]) == every
    assert all(viewing.is_view(name) for name in every)
    assert not viewing.is_view("plain")
    assert not viewing.is_view("affine_boxes#0")
    with pytest.raises(ValueError, match="'spin' came"):
        viewing.spell(["spin"])


def test_flips_are_exact(drawing):
    for name, turned in (("hflip", drawing[:, ::-1]), ("vflip", drawing[::-1])):
        assert np.array_equal(viewing.look(as_batch(drawing), name)[0, 0], turned)


@pytest.mark.parametrize(("name", "angle"), [("left", 8.0), ("right", -8.0)])
def test_a_tilt_turns_about_the_centre_and_paper_stays_paper(drawing, name, angle):
    seen = viewing.look(as_batch(drawing), name)
    assert seen.dtype == torch.uint8
    matrix = cv2.getRotationMatrix2D((31.5, 31.5), angle, 1.0)
    wanted = cv2.warpAffine(drawing, matrix, (64, 64), borderValue=255)
    assert np.abs(seen[0, 0].numpy().astype(int) - wanted).max() <= 12  # interpolation
    paper = viewing.look(torch.full((1, 1, 64, 64), 255, dtype=torch.uint8), name)
    assert int(paper.min()) == 255


def test_both_is_one_after_the_other(drawing):
    batch = as_batch(drawing)
    one = viewing.look(viewing.look(batch, "hflip"), "left")
    assert torch.equal(viewing.look(batch, "hflip+left"), one)
