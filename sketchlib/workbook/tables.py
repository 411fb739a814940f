"""Long tables in a report: one order after another to unfold, without a script.

Reports run no script, so a table cannot be sorted by a click; instead each order that
somebody asks for is there, folded. Limits: every order is a copy.
"""

from collections.abc import Mapping
from html import escape

import pandas as pd


def sort_foldably(
    table: pd.DataFrame, orders: Mapping[str, tuple[str, bool]], *, precision: int = 2
) -> str:
    """HTML of the table in several orders, the first unfolded.

    Args:
        table: any.
        orders: caption → (column, ascending).
        precision: decimals of fractions.
    """
    parts = []
    for number, (caption, (column, ascending)) in enumerate(orders.items()):
        ordered = table.sort_values(column, ascending=ascending, kind="stable")
        body = ordered.to_html(
            index=False, float_format=f"%.{precision}f", na_rep="–", border=0
        )
        state = " open" if number == 0 else ""
        parts.append(
            f"<details{state}><summary>{escape(caption)} ({len(table):,} rows)"
            f'</summary><div style="max-height:26rem;overflow:auto">{body}</div>'
            "</details>"
        )
    return "".join(parts)
