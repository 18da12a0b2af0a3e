import math

import pytest

from token_superposition.formatting import better_or_worse


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
