"""A conversion that a process of its own does, to be killed by test_survival: in small pieces, so that it takes a while."""

import threading
from multiprocessing.synchronize import Event
from pathlib import Path

from latxa_megatron.convert import exporter, importer


def convert(kind: str, source: Path, out: Path) -> None:
    """In a process of its own: the size of pieces stays as it is set here."""
    importer.PIECE_BYTES = exporter.PIECE_BYTES = 500
    if kind == "import":
        importer.import_hf(source, out)
    else:
        exporter.export_hf(source, out)


def stand_still(kind: str, source: Path, out: Path, begun: Event) -> None:
    """Begin a conversion, and stay in it until this process is killed."""

    def report(done: int, total: int) -> None:
        begun.set()
        threading.Event().wait()

    if kind == "import":
        importer.import_hf(source, out, report=report)
    else:
        exporter.export_hf(source, out, report=report)
