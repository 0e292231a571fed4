"""Checks of the options of data modules."""

from typing import Any

from cifarbn.errors import UserError

# Of data sets without validation and test sets of their own.
VAL_SHARE, TEST_SHARE = 0.1, 0.2


def number_of(key: str, share: int | float, total: int) -> int:
    """Return how many of `total` training images a number or a fraction of them is.

    Raises:
        UserError: if no training image would be left.
    """
    count = share if isinstance(share, int) else max(1, round(share * total))
    if count >= total:
        raise UserError(f"data.{key} must be below the number of training images, {total}, not {count}")
    return count


def number_of_test_images(test_size: Any, total: int) -> int:
    """Return the number of test images to select from a data set that has no test set.

    Args:
        test_size: a number or a fraction of the images; None means `TEST_SHARE`.
        total: number of images in the data set.

    Raises:
        UserError: if `test_size` is neither a number nor a fraction, or leaves no test or no training image.
    """
    share = check_share("test_size", TEST_SHARE if test_size is None else test_size)
    if not share:
        raise UserError("data.test_size must be above 0: a run ends with a test")
    return number_of("test_size", share, total)


def check_share(key: str, value: Any) -> int | float:
    """Return a number of images, or a fraction between 0 and 1 of them.

    Raises:
        UserError: if it is neither.
    """
    if isinstance(value, float):
        if not 0 < value < 1:
            raise UserError(f"data.{key} must be a whole number, or a fraction between 0 and 1, not {value!r}")
        return value
    return check_whole(key, value, at_least=0)


def check_whole(key: str, value: Any, at_least: int | None = None) -> int:
    """Return a whole number.

    Raises:
        UserError: if it is not one, or below `at_least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"data.{key} must be a whole number, not {value!r}")
    if at_least is not None and value < at_least:
        raise UserError(f"data.{key} must be at least {at_least}, not {value}")
    return value


def check_flag(key: str, value: Any) -> bool:
    """Return a bool.

    Raises:
        UserError: if it is not one.
    """
    if not isinstance(value, bool):
        raise UserError(f"data.{key} must be true or false, not {value!r}")
    return value


def check_size(key: str, value: Any) -> tuple[int, int]:
    """Return (height, width) for a whole number, or a pair of them.

    Raises:
        UserError: if it is neither.
    """
    pair = [value, value] if isinstance(value, int) else value
    try:
        height, width = pair
    except (TypeError, ValueError):
        raise UserError(f"data.{key} must be a number of pixels, or [height, width], not {value!r}") from None
    return check_whole(key, height, at_least=1), check_whole(key, width, at_least=1)


def check_three(key: str, values: Any) -> tuple[float, float, float]:
    """Return three numbers, one per channel.

    Raises:
        UserError: if it is not three numbers.
    """
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"data.{key} must be three numbers, one per colour channel, not {values!r}") from None
    return red, green, blue
