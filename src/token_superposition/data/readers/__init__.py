"""Readers: turn the sources that the user names into documents of text.

`discovery` finds the files. `corpus` splits them into pieces and yields documents. Each format has its own reader:
`text`, `records` (.jsonl, .json, .csv), `parquet`, `arrow`, `hub`, `token_files`.
"""

from token_superposition.data.readers.corpus import Corpus, check_found, read_piece
from token_superposition.data.readers.discovery import PYTHON, STDIN, File, source_name
from token_superposition.data.readers.document import MAX_DOCUMENT_BYTES, Document, Piece, ReadOptions, Skipped

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "PYTHON",
    "STDIN",
    "Corpus",
    "Document",
    "File",
    "Piece",
    "ReadOptions",
    "Skipped",
    "check_found",
    "read_piece",
    "source_name",
]
