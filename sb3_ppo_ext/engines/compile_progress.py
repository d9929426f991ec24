"""What the user sees while something is compiled."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def compile_progress(verbose: int) -> Iterator[None]:
    """Says that it is compiled, and for how long already; on a terminal it leaves no trace there."""
    what, start, done = "Compiling, once on this machine; this takes 20 s or so", time.monotonic(), threading.Event()
    stream = sys.stderr
    if not stream.isatty():
        if verbose >= 1:
            print(f"{what} ...", flush=True)
        yield
        return

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r{what}: {time.monotonic() - start:.0f} s ", end="", file=stream, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=stream, flush=True)
