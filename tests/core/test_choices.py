"""Words for classes: one for all, one for each image, one for each result."""

from __future__ import annotations

import pytest

from atonce.core.choices import class_rows
from atonce.core.errors import InputError

NAMES = ["Coat", "Bag", "Boot"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["bag"], 1),
        (["2"], 2),
        (["COAT", "boot"], [0, 0, 0, 2, 2, 2]),
        (["0", "1", "2", "bag", "bag", "coat"], [0, 1, 2, 1, 1, 0]),
    ],
)
def test_classes_of_the_results_of_two_images_with_three_each(words, expected):
    assert class_rows(words, NAMES, 2, 3) == expected


def test_another_number_of_words_is_refused():
    with pytest.raises(InputError, match="3 labels are given for 2 images with 3 results each"):
        class_rows(["0", "1", "2"], NAMES, 2, 3)
    with pytest.raises(InputError, match="no class 'hat'"):
        class_rows(["hat"], NAMES, 1, 1)
    with pytest.raises(InputError, match="unconditional"):
        class_rows(["0"], None, 1, 1)
    assert class_rows([], None, 1, 1) is None
