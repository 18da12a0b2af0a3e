"""No search for packed documents in rows whose positions the model makes itself.

Where a forward is given no mask, transformers looks whether its positions start again somewhere in a row, which is how
it keeps packed documents apart. The answer decides what is asked of the device next, so on a GPU every forward waits
for it, until all that was asked before is done. Positions that the model makes itself run from 0 to the row's end:
there is nothing to find. So its search is put in a frame of ours that answers at once where that is known, in this
thread alone, and leaves every other call as it is.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import torch

_SEARCH = "find_packed_sequence_indices"  # of transformers.masking_utils
_here = threading.local()


@contextlib.contextmanager
def rows_hold_one_document() -> Iterator[None]:
    """Inside the block no forward of this thread looks for packed documents; nothing changes while it is compiled."""
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
    """Once a process; a transformers without such a search has nothing to be left out."""
    from transformers import masking_utils

    search: Any = getattr(masking_utils, _SEARCH, None)
    if search is None or hasattr(search, "__wrapped__"):
        return

    @functools.wraps(search)
    def find(*arguments: Any, **options: Any) -> Any:
        if not torch.compiler.is_compiling() and getattr(_here, "one_document", False):
            return None  # its word for one document a row
        return search(*arguments, **options)

    setattr(masking_utils, _SEARCH, find)
