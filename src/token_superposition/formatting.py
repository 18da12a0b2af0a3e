"""How the text output states a difference between two losses: in words, never with a sign."""


def better_or_worse(difference: float, unit: str = "nats", digits: int = 3) -> str:
    """State ``difference`` (superposition minus baseline, lower is better) in words, without a sign.

    -0.061 gives "0.061 nats better", and 0.021 gives "0.021 nats worse". A difference that rounds to zero at
    ``digits`` digits gives "level (less than 0.001 nats apart)". NaN gives "not known".
    """
    if difference != difference:
        return "not known"
    size = f"{abs(difference):.{digits}f}"
    if float(size) == 0:
        return f"level (less than {10**-digits:.{digits}f} {unit} apart)"
    return f"{size} {unit} {'better' if difference < 0 else 'worse'}"


def better_or_worse_range(low: float, high: float, unit: str = "nats", digits: int = 3) -> str:
    """State a range of differences (superposition minus baseline) in words, without a sign.

    (-0.13, -0.07) gives "0.070 to 0.130 nats better", and (-0.13, 0.02) gives "0.020 nats worse to 0.130 nats better".
    """
    if low != low or high != high:
        return "not known"
    if round(low, digits) < 0 < round(high, digits):
        return f"{better_or_worse(high, unit, digits)} to {better_or_worse(low, unit, digits)}"
    near, far = sorted((abs(low), abs(high)))
    if round(far, digits) == 0:
        return better_or_worse(0.0, unit, digits)
    return f"{near:.{digits}f} to {better_or_worse(min(low, high, key=lambda end: -abs(end)), unit, digits)}"
