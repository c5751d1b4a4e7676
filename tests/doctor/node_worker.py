"""`latxa doctor` as one of two nodes: ranks 0 and 1 on one.example, 2 on two.example, whose disk is full and clock is ahead.

Run by test_together.py with srun's variables, or as `node_worker.py alone` with one process fewer than the others wait for.
"""

import os
import shutil
import socket
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

from latxa_megatron.doctor import bandwidth, clocks, disk

AHEAD = 7.0

if __name__ == "__main__":
    second = os.environ["SLURM_PROCID"] == "2"
    socket.gethostname = lambda: "two.example" if second else "one.example"
    bandwidth.SIZES["cpu"] = (1 << 10, 1 << 20)
    disk.SIZE = 16 << 20
    if second:
        clocks.measure.__defaults__ = (lambda: time.time() + AHEAD, clocks.ROUNDS)
        real = shutil.disk_usage
        shutil.disk_usage = lambda path: SimpleNamespace(total=1, used=1, free=0) if str(path) != "/dev/shm" else real(path)
    if "alone" in sys.argv:
        sys.argv.remove("alone")
        bandwidth.LIMIT = timedelta(seconds=3)
    from latxa_megatron.cli.main import main

    main()
