import pytest
import torch

from cifarbn.errors import UserError
from cifarbn.training.tta import check_tta, tta_logits


def corner(images):
    """Return the upper left pixel as the only logit."""
    return images[:, 0, :1, 0]


def test_flip_is_the_mean_of_both_sides():
    images = torch.arange(9.0).view(1, 1, 3, 3)
    assert tta_logits(corner, images, corner(images), "flip") == (0 + 2) / 2


def test_flip_shift_is_half_of_that_and_a_quarter_of_each_shift():
    # 0 1 2 moved up and left shows 4 5 5' in its first row, where 5' = 4 is mirrored: corners 4 and, flipped, 4.
    # 3 4 5 moved down and right shows the pixel mirrored from (1, 1), 4, and flipped that from (1, 1), 4.
    # 6 7 8
    images = torch.arange(9.0).view(1, 1, 3, 3)
    assert tta_logits(corner, images, corner(images), "flip_shift") == 0.5 * 1 + 0.25 * 4 + 0.25 * 4


def test_a_model_that_is_blind_to_position_says_the_same_of_every_view():
    images = torch.full((2, 3, 8, 8), 0.7)
    plain = images.mean((2, 3))
    for views in ("flip", "flip_shift"):
        torch.testing.assert_close(tta_logits(lambda x: x.mean((2, 3)), images, plain, views), plain)


def test_an_unknown_name_is_an_error():
    with pytest.raises(UserError, match="tta must be one of none, flip, flip_shift, not 'rotate'"):
        check_tta("rotate")
