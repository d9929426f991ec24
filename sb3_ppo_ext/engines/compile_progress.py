"""The line that the user sees while something is compiled."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TEXT = "Compiling, once on this machine; this takes 20 s or so"


@contextmanager
def compile_progress(verbose: int) -> Iterator[None]:
    """Prints that the block compiles; on a terminal with the seconds so far, and erases the line at the end."""
    start, done = time.monotonic(), threading.Event()
    stream = sys.stderr
    if not stream.isatty():
        if verbose >= 1:
            print(f"{TEXT} ...", flush=True)
        yield
        return

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r{TEXT}: {time.monotonic() - start:.0f} s ", end="", file=stream, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=stream, flush=True)
