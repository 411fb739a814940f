"""A board to draw on: what a run takes the sketch for, and where it looks.

Strokes are kept as points and drawn here, so nothing has to be fetched back from the
browser. Needs the extra `draw` (ipycanvas) and a person at the kernel; a log or a
report gets a notice instead. Limits: one pen, black on white.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from sketchlib.analysis import looking, sheets
from sketchlib.workbook import session

SIDE_PX = 320
_PEN_PX = 6

Stroke = list[tuple[float, float]]


def ink_strokes(strokes: Sequence[Stroke], side_px: int = SIDE_PX) -> np.ndarray:
    """(S, S) uint8: the strokes in black on white; a single point is a dot."""
    paper = np.full((side_px, side_px), 255, np.uint8)
    for stroke in strokes:
        points = np.rint(np.array(stroke) * 16).astype(np.int32)  # 1/16 of a pixel
        twice = np.concatenate([points, points[-1:]])
        cv2.polylines(paper, [twice], False, 0, _PEN_PX, cv2.LINE_AA, shift=4)
    return paper


def open_board(glass: looking.Glass, *, method: str) -> Any:
    """The board where it can be used, a notice in words where it cannot."""
    if not session.is_interactive():
        return "Drawing needs JupyterLab: open this notebook there and run this cell."
    if importlib.util.find_spec("ipycanvas") is None:
        return "Drawing needs ipycanvas: `pip install 'sketchlib[draw]'`."
    return Board(glass, method).show()


class Board:
    """A canvas, a button to recognise and one to clear."""

    def __init__(self, glass: looking.Glass, method: str) -> None:
        import ipycanvas
        import ipywidgets

        self.glass, self.method = glass, method
        self.strokes: list[Stroke] = []
        self.is_down = False
        self.canvas = ipycanvas.Canvas(width=SIDE_PX, height=SIDE_PX)
        self.canvas.layout.border = "1px solid #7d848c"
        self.canvas.line_width = _PEN_PX
        self.canvas.line_cap = "round"
        self.canvas.on_mouse_down(self.press)
        self.canvas.on_mouse_move(self.move)
        self.canvas.on_mouse_up(self.lift)
        self.answer = ipywidgets.Output()
        self.ask = ipywidgets.Button(description="Recognise")
        self.wipe = ipywidgets.Button(description="Clear")
        self.ask.on_click(lambda _: self.tell())
        self.wipe.on_click(lambda _: self.clear())

    def show(self) -> Any:
        """The widgets."""
        import ipywidgets

        left = ipywidgets.VBox([self.canvas, ipywidgets.HBox([self.ask, self.wipe])])
        return ipywidgets.HBox([left, self.answer])

    def press(self, x: float, y: float) -> None:
        """A new stroke begins."""
        self.is_down = True
        self.strokes.append([(x, y)])

    def move(self, x: float, y: float) -> None:
        """The stroke goes on, while the pen is down."""
        if not self.is_down:
            return
        self.canvas.stroke_line(*self.strokes[-1][-1], x, y)
        self.strokes[-1].append((x, y))

    def lift(self, x: float, y: float) -> None:
        """The stroke ends."""
        self.move(x, y)
        self.is_down = False

    def clear(self) -> None:
        """White paper again."""
        self.strokes = []
        self.canvas.clear()
        self.answer.clear_output()

    def tell(self) -> None:
        """Show the likeliest classes and what was looked at."""
        from IPython.display import display
        from matplotlib import pyplot as plt

        self.answer.clear_output(wait=True)
        with self.answer:
            if not self.strokes:
                print("draw something first")
                return
            drawing = ink_strokes(self.strokes)
            table, seen, cam = self.glass.recognise(drawing, method=self.method)
            tiles = [seen, sheets.lay_cam(seen, cam)]
            display(sheets.plot_grid(tiles, ["as the models see it", "looked at"]))
            display(table.style.format(precision=2, escape="html").hide())
            plt.close("all")
