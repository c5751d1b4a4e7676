"""Heartbeats for ft_launcher of nvidia-resiliency-ext, which starts all ranks again where one of them gives none for too long.

It keeps a monitor of each rank, a process of its own: that also notices a rank of which no thread runs any more. How long it
waits is said by ft_launcher's options, so a run file has nothing to say.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from latxa_megatron import launcher


@contextmanager
def heartbeats() -> Iterator[Callable[[], None]]:
    """What sends a heartbeat of this rank; it does nothing where ft_launcher did not start the rank.

    Where the monitor has gone, it does nothing either: ft_launcher has it hang up before it asks the ranks to stop, and they
    are still to save.
    """
    if not launcher.has_monitor():
        yield lambda: None
        return
    from nvidia_resiliency_ext.fault_tolerance import RankMonitorClient, RankMonitorClientError

    monitor = RankMonitorClient()
    monitor.init_workload_monitoring()

    def beat() -> None:
        with suppress(RankMonitorClientError):
            monitor.send_heartbeat()

    try:
        yield beat
    finally:
        with suppress(OSError):
            monitor.shutdown_workload_monitoring()
