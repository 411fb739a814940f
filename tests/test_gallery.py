import re

import cv2
import numpy as np

from sketchlib.data import cache, manifest
from sketchlib.workbook import gallery


def test_every_class_has_a_lazy_strip_with_all_its_drawings(world, tmp_path):
    table = manifest.read_manifest(world)
    geometry = cache.Geometry(48, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path / "cache")
    text = gallery.write_class_page(tmp_path, table, pixels).read_text()
    assert text.count('loading="lazy"') == text.count("<img") == 4
    for source in re.findall(r'src="([^"]+)"', text):
        strip = cv2.imread(str(tmp_path / source), cv2.IMREAD_GRAYSCALE)
        assert strip.shape == (2 * 72, 8 * 72)  # 12 drawings in rows of eight
        assert not re.match(r"\w+:", source)
    assert "48 drawings" in text
    assert "<script" not in text


def test_f8_a_class_name_is_escaped(world, tmp_path):
    table = manifest.read_manifest(world)
    table["class_name"] = table["class_name"].replace("circle", "<script>x</script>")
    geometry = cache.Geometry(48, "ink", "grey", "white")
    pixels = cache.open_pixels(table, world, geometry, tmp_path / "cache")
    text = gallery.write_class_page(tmp_path, table, pixels).read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_colour_strips_keep_their_colours():
    red = np.zeros((10, 10, 3), np.uint8)
    red[..., 0] = 200  # RGB in, BGR out for cv2.imwrite
    assert gallery.make_strip([red])[5, 5].tolist() == [0, 0, 200]
