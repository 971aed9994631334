"""Tables of aligned text columns."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int | None = None) -> None:
    """Print rows. Right-align columns of integers and all columns from `numbers_from` on."""
    shown = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(text) for text in texts) for texts in zip(columns, *shown, strict=True)]
    numeric = [bool(rows) and isinstance(rows[0][place], int) for place in range(len(columns))]
    if numbers_from is not None:
        numeric[numbers_from:] = [True] * len(numeric[numbers_from:])
    for line in (columns, *shown):
        cells = [
            text.rjust(width) if is_number else text.ljust(width)
            for text, width, is_number in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())
