"""The review as a panel in JupyterLab: two pictures, six keys.

An anywidget: its browser half is `review.mjs`, loaded from Python without a build
step. It shows what the desk says and sends back what was pressed; it knows nothing
that the desk does not. Limits: the panel needs the keyboard focus, which it takes
when it appears and when it is clicked.
"""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from sketchlib.workbook import review

_HERE = Path(__file__).parent


class ReviewWidget(anywidget.AnyWidget):
    """Shows a desk; k keep, d drop, n no duplicate, r relabel, u undo, s skip."""

    _esm = _HERE / "review.mjs"
    _css = _HERE / "review.css"
    state = traitlets.Dict().tag(sync=True)
    classes: traitlets.List[str] = traitlets.List().tag(sync=True)

    def __init__(self, desk: review.Desk) -> None:
        super().__init__()
        self.desk = desk
        self.classes = desk.classes
        self.on_msg(self._take)
        self._show("")

    def _take(self, _: Any, message: dict[str, str], __: Any) -> None:
        """One key or button; a verdict that does not fit is said, not raised."""
        try:
            told = self._act(message)
        except (ValueError, OSError) as error:
            told = str(error)
        self._show(told)

    def _act(self, message: dict[str, str]) -> str:
        action = message.get("action", "")
        if action == "skip":
            self.desk.skip()
            return ""
        if action == "undo":
            made = self.desk.undo()
            return f"took back: {made.old} {made.id}"
        made = self.desk.decide(action, message.get("id", ""), message.get("new", ""))
        return f"written: {made.action} {made.id} {made.new}".rstrip()

    def _show(self, told: str) -> None:
        desk, item = self.desk, self.desk.current
        pictures = [_describe(desk, one) for one in item.image_ids] if item else []
        self.state = {
            "progress": desk.progress,
            "title": review.describe(item) if item else "Every question is answered.",
            "pictures": pictures,
            "suggestion": _suggest(desk, item) if item else "",
            "told": told,
        }


def _describe(desk: review.Desk, image_id: str) -> dict[str, str]:
    return {
        "id": image_id,
        "name": desk.verdicts.labels.get(image_id, desk.names[image_id]),
        "subset": desk.subsets[image_id],
        "source": review.as_data_uri(review.read_picture(desk.data_dir, image_id)),
    }


def _suggest(desk: review.Desk, item: review.Item) -> str:
    """The class a relabel is likely to want: the neighbours' or the other's."""
    names = [desk.names[one] for one in item.image_ids if desk.names[one]]
    return item.suggestion or (names[0] if names else "")
