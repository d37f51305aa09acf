"""Worker processes that end when the process that they work for has ended, however it did."""

import multiprocessing
import os
import threading
import time

_EVERY = 0.5  # seconds

_watching = threading.Event()


def end_with(owner: int) -> None:
    """End this process soon after the process `owner` if it is a child of it.

    A worker of joblib outlives a parent that was killed: nobody tells it to stop. Workers of a
    cluster, whose parent is another process, are left to it.
    """
    if os.name != "posix" or os.getpid() == owner or _watching.is_set():
        return
    if os.getppid() != owner:
        if _is_of_joblib():  # it was, and has ended while this process was starting
            os._exit(1)
        return
    _watching.set()
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(_EVERY)
    os._exit(1)


def _is_of_joblib() -> bool:
    return type(multiprocessing.current_process()).__module__.startswith("joblib.")
