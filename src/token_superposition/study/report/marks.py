"""The small things in a drawing: an arm's marker, and names kept from running into one another."""

from __future__ import annotations

NUM_STYLES = 7  # colours in the style sheet; arms beyond that share them, and still have their names


def arm_class(index: int) -> str:
    """The style sheet's class for the arm at that place in the report."""
    return f"arm-{index % NUM_STYLES}"


def marker(index: int, x: float, y: float) -> str:
    """An arm's mark: circle, square, diamond, triangle, in turn."""
    style = f"mark {arm_class(index)}"
    shapes = (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>',
        f'<rect class="{style}" x="{x - 3.7:.1f}" y="{y - 3.7:.1f}" width="7.4" height="7.4"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z"/>',
        f'<path class="{style}" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>',
    )
    return shapes[index % len(shapes)]


def short(text: str, longest: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def short_names(names: list[str], longest: int) -> list[str]:
    """Names that fit, told apart: where beginnings are the same, the middle is left out instead of the end."""
    cut = [short(name, longest) for name in names]
    head, tail = (longest - 1) // 2, longest - 1 - (longest - 1) // 2
    return [
        f"{name[:head].rstrip()}…{name[-tail:].lstrip()}" if len(name) > longest and cut.count(text) > 1 else text
        for name, text in zip(names, cut, strict=True)
    ]


def spread(wanted: list[float], bottom: float, gap: float) -> list[float]:
    """Places near those wanted, at least `gap` apart and none below `bottom` (places count downwards)."""
    groups: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        groups.append([index])
        while len(groups) > 1 and _collide(groups[-2], groups[-1], wanted, gap):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(wanted)
    for group in groups:
        for offset, index in enumerate(group):
            placed[index] = _first(group, wanted, gap) + gap * offset
    overhang = max([0.0, *(place - bottom for place in placed)])
    return [place - overhang for place in placed]


def _first(group: list[int], wanted: list[float], gap: float) -> float:
    """Where a group's first member goes, so that the group is centred on what its members want."""
    return sum(wanted[i] for i in group) / len(group) - gap * (len(group) - 1) / 2


def _collide(above: list[int], below: list[int], wanted: list[float], gap: float) -> bool:
    return _first(below, wanted, gap) < _first(above, wanted, gap) + gap * len(above)
