"""Types of command-line options. Numbers are decimal and have the same notation as in a YAML file."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from token_superposition.errors import UserError, shortened
from token_superposition.files import expanded, user_path

_DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[-+]?[0-9]{1,400}(_[0-9]+)*")
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def path(text: str) -> Path:
    """The path of a file or folder; `~` and `~user` mean home folders."""
    try:
        return user_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_or_word(text: str) -> str:
    """A path or another name, such as a name on the Hugging Face Hub; only a leading `~` is replaced."""
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def integer(text: str) -> int:
    """A whole number in decimal notation: `010` is ten."""
    if not _INTEGER.fullmatch(text.strip()) or len(text) > 400:
        raise argparse.ArgumentTypeError(f"a whole number is needed, such as 10, not {shortened(text)!r}")
    return int(text)


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number that is at least `least`."""

    def bounded(text: str) -> int:
        value = integer(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"at least {least}, not {shortened(text)}")
        return value

    return bounded


whole_number = at_least(1)


def seed(text: str) -> int:
    """A seed: from 0 to 2**63 - 1."""
    value = integer(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"a seed is at least 0 and under 2**63, not {shortened(text)}")
    return value


def number(text: str) -> float:
    """A finite number, such as 0.5, 1e-3 or .5."""
    if not _NUMBER.fullmatch(text.strip()) or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"a number is needed, such as 0.5 or 1e-3, not {shortened(text)!r}")
    return float(text)


def device(text: str) -> str:
    """The name of a device; `resolve_device` later checks that this machine has the device."""
    if not is_device(text):
        raise argparse.ArgumentTypeError(
            f"a device is auto, cpu, cuda, cuda:1 (or another number) or mps, not {shortened(text)!r}"
        )
    return text


def is_device(text: str) -> bool:
    """Whether a text is the name of a device that some machine can have."""
    return _DEVICES.fullmatch(text) is not None
