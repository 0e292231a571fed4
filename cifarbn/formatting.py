"""Format numbers, durations and text tables in the same way in terminals and reports."""

from collections.abc import Sequence


def number(value: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format `scale * value` with thousands separators, a fixed number of decimals and a true minus sign.

    Args:
        value: None gives an empty cell.
        digits: number of decimals.
        scale: factor; 100 shows a fraction as a percentage.

    >>> number(0.8731, scale=100), number(1234567, 0), number(None)
    ('87.31', '1,234,567', '')
    """
    return "" if value is None else _minus_sign(f"{scale * value:,.{digits}f}")


def points(difference: float | None) -> str:
    """Format a difference of two fractions in percentage points with its sign: '+1.25'; None gives an empty cell."""
    return "" if difference is None else _minus_sign(f"{100 * difference:+.2f}")


def plus_minus(mean: float | None, std: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format a mean and its standard deviation: '92.00 ± 2.00', or '92.00' if there is no `std`."""
    return number(mean, digits, scale) + ("" if std is None else f" ± {number(std, digits, scale)}")


def interval(middle: float | None, half_width: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format the ends of a confidence interval: '87.03 to 96.97'; empty if there is no `half_width`."""
    if middle is None or half_width is None:
        return ""
    return f"{number(middle - half_width, digits, scale)} to {number(middle + half_width, digits, scale)}"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage for running text: '97.3 %'."""
    return f"{number(fraction, 1, 100)} %"


def duration(seconds: float) -> str:
    """Format a duration: '45 s', '12 min', '3 h 05 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def text_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Format a plain-text table with aligned columns, two spaces apart; the header is the first row.

    Args:
        rows: rows of cells, all of the same length.
        align: one "<" (left) or ">" (right) per column.

    Raises:
        ValueError: if the rows differ in length.

    >>> print(text_table([["side", "images/s"], ["ours", "900"]], "<>"))
    side  images/s
    ours       900
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(text_row(row, align, widths) for row in rows)


def text_row(cells: Sequence[str], align: str, widths: Sequence[int]) -> str:
    """Return one line of a text table, for tables printed row by row as results arrive."""
    columns = zip(cells, align, widths, strict=True)
    return "  ".join(f"{cell:{side}{width}}" for cell, side, width in columns).rstrip()


def _minus_sign(text: str) -> str:
    return text.replace("-", "−")


def first_names(names: Sequence[str]) -> str:
    """Return the first three names, with an ellipsis if there are more: `a, b, c ...`."""
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
