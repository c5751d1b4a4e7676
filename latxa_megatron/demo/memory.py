"""The most memory that this process and its children held at one time."""

import threading

import psutil

_SECONDS = 3.0
"""Between samples: the kernel walks a process's page tables for each, and holds up its page faults meanwhile."""


class PeakMemory:
    """Samples the memory of this process and all below it, every few seconds, while the block runs.

    What processes share (a forked child shares nearly all) is counted once: proportional set sizes, in 1e9 bytes.
    """

    def __init__(self) -> None:
        self.peak_gb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(_SECONDS):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak_gb = max(self.peak_gb, total / 1e9)
