"""Datasets of the Hugging Face hub (extra `hub`), streamed: `hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT`.

NAME is a name on the hub or a local folder that `datasets` can load. The default split is `train`. A folder that
`datasets` wrote with `save_to_disk` is read by `arrow`, with or without `hf:` before its name. The shards of a dataset
(its files) are the pieces: several processes read different shards, and a restart does not download finished shards
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from token_superposition.data.readers.document import Document, Piece, ReadOptions, Skipped, text_of_record
from token_superposition.errors import UserError

PREFIX = "hf:"


def split_name(source: str) -> tuple[str, str | None, str | None]:
    """Return the name, the configuration and the split of a source that begins with `hf:`."""
    name, *rest = source.removeprefix(PREFIX).split(":")
    if not name or len(rest) > 2 or not all(rest):
        raise UserError(f"{source}: write hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def num_shards(source: str) -> int:
    """Return the number of shards of a dataset.

    Raises:
        UserError: if the dataset cannot be loaded.
    """
    return int(_load(source).num_shards)


def read_hub(piece: Piece, reading: ReadOptions, skipped: Skipped) -> Iterator[Document]:
    """Yield the documents of the shards of a piece."""
    whole = _load(piece.source)
    number = 0
    for shard in range(piece.start or 0, piece.stop or whole.num_shards):
        part = whole.shard(num_shards=whole.num_shards, index=shard) if whole.num_shards > 1 else whole
        where = f"{piece.source}, shard {shard}"
        try:
            for number, row in enumerate(part, start=1):
                text = text_of_record(row, f"{where}, row {number}", reading, skipped, "column")
                if text is not None:
                    yield Document(text, f"{piece.source}:{shard}:{number}")
        except UserError:
            raise
        except Exception as error:  # errors of the connection or of a file format: the libraries raise many kinds
            message = f"{where}: cannot be read after row {number} ({_line(error)})"
            reading.bad(skipped, "files_damaged", message)
        skipped.bytes_done += 1


def _load(source: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: needs an extra: pip install 'token-superposition[hub]'") from None
    name, config, split = split_name(source)
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a bad file also raises an error
    try:
        return datasets.load_dataset(name, config, split=split or "train", streaming=True)
    except Exception as error:  # no such name, no rights, no network, no split
        raise UserError(f"{source}: cannot be loaded ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
