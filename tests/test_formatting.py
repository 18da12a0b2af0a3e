import math

import pytest

from token_superposition.formatting import better_or_worse, better_or_worse_range


@pytest.mark.parametrize(
    ("difference", "words"),
    [(-0.061, "0.061 nats better"), (0.021, "0.021 nats worse"), (-math.inf, "inf nats better")],
)
def test_a_negative_difference_is_better_and_no_sign_is_printed(difference: float, words: str) -> None:
    assert better_or_worse(difference) == words


@pytest.mark.parametrize("difference", [0.0, -0.0, -0.0004, 0.0004])
def test_what_rounds_to_zero_is_neither_better_nor_worse(difference: float) -> None:
    words = better_or_worse(difference)
    assert "level" in words
    assert "better" not in words
    assert "worse" not in words


def test_unit_digits_and_nan() -> None:
    assert better_or_worse(-1.25, "bits per byte", 1) == "1.2 bits per byte better"
    assert "level" in better_or_worse(0.04, digits=1)
    assert better_or_worse(math.nan) == "not known"


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((-0.13, -0.07), "0.070 to 0.130 nats better"),
        ((0.012, 0.029), "0.012 to 0.029 nats worse"),
        ((-0.13, 0.02), "0.020 nats worse to 0.130 nats better"),
        ((-0.13, 0.0001), "0.000 to 0.130 nats better"),
    ],
)
def test_a_range_names_its_worse_end_or_its_nearer_end_first(ends: tuple[float, float], words: str) -> None:
    assert better_or_worse_range(*ends) == words


def test_a_range_of_nothing_is_level_and_a_missing_end_is_not_known() -> None:
    assert "level" in better_or_worse_range(-0.0001, 0.0001)
    assert better_or_worse_range(math.nan, 0.1) == "not known"
