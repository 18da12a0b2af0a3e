"""Sources: from what the user names to documents of text.

`listing` finds the files, `corpus` cuts them into pieces and gives documents; each format has a reader of its
own: `text`, `records` (.jsonl, .json, .csv), `parquet`, `hub`, `tokens`.
"""

from token_superposition.data.sources.corpus import Corpus, check_found, read_piece
from token_superposition.data.sources.document import MAX_DOCUMENT_BYTES, Document, Piece, Reading, Skipped
from token_superposition.data.sources.listing import PYTHON, STDIN, File, source_name

__all__ = [
    "MAX_DOCUMENT_BYTES",
    "PYTHON",
    "STDIN",
    "Corpus",
    "Document",
    "File",
    "Piece",
    "Reading",
    "Skipped",
    "check_found",
    "read_piece",
    "source_name",
]
