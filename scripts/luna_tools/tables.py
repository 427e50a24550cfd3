"""Tables in Markdown."""

from typing import List


def table_of(rows: List[List[str]]) -> str:
    """Rows of cells in Markdown, the first of them the heads."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
