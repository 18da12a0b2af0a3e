"""How the text output states a difference between two losses."""


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
