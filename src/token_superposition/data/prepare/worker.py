"""A process that encodes pieces: `main` runs with the folder of the workplace as its only argument.

The process reads one line of JSON from standard input for each piece. It answers with lines of JSON: progress, and at
the end a result or an error. It uses JSON instead of pickle, so that no data is ever unpickled, and so that the process
does not depend on the program of its parent. Its settings are in the folder: `worker.json` and the tokenizer.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from token_superposition.data.prepare.encode import EncodeProgress, Encoder
from token_superposition.data.readers import Piece, ReadOptions
from token_superposition.data.tokenizers import load_tokenizer
from token_superposition.errors import UserError
from token_superposition.files import read_object, write_json
from token_superposition.interrupts import ignore_stop_signals

_SETTINGS = "worker.json"


def write_settings(encoder: Encoder) -> None:
    """Write the settings of an encoder into its folder, for the worker processes."""
    write_json(encoder.folder / _SETTINGS, {"reading": asdict(encoder.reading), "seed": encoder.seed})


def read_settings(folder: Path) -> Encoder:
    """Return the encoder with the settings in a folder."""
    values = read_object(folder / _SETTINGS, "start again")
    return Encoder(folder, load_tokenizer(folder), ReadOptions(**values["reading"]), values["seed"])


def piece_from(values: dict[str, Any]) -> Piece:
    """Return a piece that was sent as JSON."""
    return Piece(**{**values, "files": tuple(values["files"])})


def _answer(**answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Encode pieces until standard input ends or the parent process is gone."""
    ignore_stop_signals()
    with contextlib.suppress(BrokenPipeError):
        _encode_pieces()


def _encode_pieces() -> None:
    encoder = read_settings(Path(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        number = order["number"]
        piece = piece_from(order["piece"])

        def report(progress: EncodeProgress, number: int = number) -> None:
            _answer(number=number, progress=asdict(progress))

        try:
            _answer(number=number, result=encoder.encode(number, piece, report))
        except UserError as error:
            _answer(number=number, wrong=str(error))
        except OSError as error:
            _answer(number=number, refused=[error.errno, error.strerror, str(error.filename or "")])
