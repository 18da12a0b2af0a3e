"""Skip the search of transformers for packed documents in rows whose positions the model makes itself.

If a forward gets no mask, transformers checks whether the positions restart inside a row, in order to keep packed
documents apart. The next operations depend on the result, so on a GPU every forward waits until all earlier work is
finished. Positions that the model makes itself run from 0 to the end of the row, so the search finds nothing. This
module wraps the search. In rows that are known to hold one document, the wrapper returns at once, only in this thread.
Every other call is unchanged.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

_SEARCH = "find_packed_sequence_indices"  # a function of transformers.masking_utils
_here = threading.local()


@contextlib.contextmanager
def rows_hold_one_document() -> Iterator[None]:
    """Turn off the search for packed documents for forwards of this thread inside the block, except in compilation."""
    if torch.compiler.is_compiling():
        yield
        return
    _frame_search()
    before = getattr(_here, "one_document", False)
    _here.one_document = True
    try:
        yield
    finally:
        _here.one_document = before


def _frame_search() -> None:
    """Wrap the search once per process, if this version of transformers has it."""
    from transformers import masking_utils

    search: Any = getattr(masking_utils, _SEARCH, None)
    if search is None or hasattr(search, "__wrapped__"):
        return

    @functools.wraps(search)
    def find(*arguments: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling() and getattr(_here, "one_document", False):
            return None  # None means one document per row
        return search(*arguments, **options)

    setattr(masking_utils, _SEARCH, find)
