"""What the benchmarks share about processes that they start."""

from __future__ import annotations

from pathlib import Path


def tree(pid: int) -> list[int]:
    """A process and all that it started, itself first; itself alone where there is no /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        children.setdefault(int(parent), []).append(int(folder.name))
    found = [pid]
    for each in found:  # grows while it is read: children of children
        found += children.get(each, [])
    return found
