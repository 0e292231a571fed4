"""Format numbers, durations and text tables alike in terminals and reports."""

from collections.abc import Sequence


def number(value: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format `scale * value` with thousands separators, a fixed number of decimals and a true minus sign.

    Args:
        value: None gives an empty cell.
        digits: decimals.
        scale: 100 for a fraction in a column of percent.

    >>> number(0.8731, scale=100), number(1234567, 0), number(None)
    ('87.31', '1,234,567', '')
    """
    return "" if value is None else _minus_sign(f"{scale * value:,.{digits}f}")


def points(difference: float | None) -> str:
    """Format a difference of two fractions in percentage points, signed: '+1.25', '−0.81'; None gives an empty cell."""
    return "" if difference is None else _minus_sign(f"{100 * difference:+.2f}")


def plus_minus(mean: float | None, std: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format a mean and its standard deviation: '92.00 ± 2.00', or '92.00' if there is no `std`."""
    return number(mean, digits, scale) + ("" if std is None else f" ± {number(std, digits, scale)}")


def interval(middle: float | None, half_width: float | None, digits: int = 2, scale: float = 1) -> str:
    """Format a confidence interval by its ends: '87.03 to 96.97'; empty if there is no `half_width`."""
    if middle is None or half_width is None:
        return ""
    return f"{number(middle - half_width, digits, scale)} to {number(middle + half_width, digits, scale)}"


def percent(fraction: float) -> str:
    """Format a fraction as a percentage in a sentence: '97.3 %'."""
    return f"{number(fraction, 1, 100)} %"


def duration(seconds: float) -> str:
    """Format seconds as people say them: '45 s', '12 min', '3 h 05 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def text_table(rows: Sequence[Sequence[str]], align: str) -> str:
    """Align the columns of a table in a terminal, two spaces apart; a header is just its first row.

    Args:
        rows: of equally many cells.
        align: "<" (left) or ">" (right) for each column.

    >>> print(text_table([["side", "images/s"], ["ours", "900"]], "<>"))
    side  images/s
    ours       900
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(text_row(row, align, widths) for row in rows)


def text_row(cells: Sequence[str], align: str, widths: Sequence[int]) -> str:
    """Return one line of a text table, for a table that is printed line by line while its rows are computed."""
    columns = zip(cells, align, widths, strict=True)
    return "  ".join(f"{cell:{side}{width}}" for cell, side, width in columns).rstrip()


def _minus_sign(text: str) -> str:
    return text.replace("-", "−")
