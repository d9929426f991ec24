"""One of several processes of ``ppox``: RANK COUNT FOLDER and the command line, which runs in FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.distributed.worker import meet

if __name__ == "__main__":
    rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    meet(rank, count, folder)
    os.chdir(folder)
    from sb3_ppo_ext_zoo.cli import main

    status = main(sys.argv[4:])
    (folder / str(rank)).write_bytes(b"\x80\x04N.")  # None, pickled: what ``results`` reads
    sys.exit(status)
