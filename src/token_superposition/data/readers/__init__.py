"""Sources: from what the user names to documents of text.

`listing` finds the files, `corpus` cuts them into pieces and gives documents; each format has a reader of its
own: `text`, `records` (.jsonl, .json, .csv), `parquet`, `hub`, `tokens`.
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
