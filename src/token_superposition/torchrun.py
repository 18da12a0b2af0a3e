"""What the command line and a run know about torchrun, the launcher of torch.

Torch is imported only to start processes, so that every command can ask `launched_by_torchrun` at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"
# Without this variable, the processes of a restart connect to the addresses of the processes that ended.
_OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_SHUTDOWN_SECONDS = 300  # for the last checkpoint after a request to stop
INTERRUPTED = 130


def launched_by_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_rank() -> int:
    """The rank of this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if launched_by_torchrun() else 0


def start_torchrun(arguments: Sequence[str], processes: int) -> int:
    """Run `tst` with these arguments in several processes on this machine, as torchrun does; returns the exit code.

    Args:
        arguments: the arguments of `tst`.
        processes: number of processes.
    """
    import dataclasses
    import logging
    import uuid

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault(_OWN_STORE, "1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    options: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "run_id": uuid.uuid4().hex,
        "nproc_per_node": processes,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "monitor_interval": 0.1,
        "signals_to_handle": _SIGNALS,
        "shutdown_timeout": _SHUTDOWN_SECONDS,
    }
    # The processes print one line for an error; torch would add ten.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    known = {field.name for field in dataclasses.fields(LaunchConfig)}  # older versions of torch lack some
    config = LaunchConfig(**{name: value for name, value in options.items() if name in known})
    try:
        elastic_launch(config, sys.executable)("-m", "token_superposition", *arguments)
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        if code < 0:
            print(f"error: a process of the run was ended by signal {-code}", file=sys.stderr)
        return code if code in (1, 2) else 1
    except SignalException:
        return INTERRUPTED  # the processes have written a checkpoint
    return 0
