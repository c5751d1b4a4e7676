"""Files whose SHA-256 is computed while they are written, so that nobody need read them again."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BESIDE_BYTES = 1 << 16
"""From this size on, hashing takes longer than handing it to another thread; torch.save has 37 smaller writes for each tensor."""


class HashedFile(io.RawIOBase):
    """A new file that is written from its beginning to its end, by one thread. failed: what the disk said, if it did."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._beside = ThreadPoolExecutor(1)
        self._at = 0
        self.failed: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write bytes, or what is like them. Raises OSError where the disk does."""
        size = memoryview(data).nbytes
        hashing = self._beside.submit(self._hash.update, data) if size >= BESIDE_BYTES else None
        try:
            self._file.write(data)
        except OSError as error:
            self.failed = error
            raise
        finally:
            if hashing is not None:
                hashing.result()  # after which the data may change
        if hashing is None:
            self._hash.update(data)
        self._at += size
        return size

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        super().close()
        self._file.close()
        self._beside.shutdown()

    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._hash.hexdigest()


@contextmanager
def hashed(path: Path, sums: dict[str, str]) -> Iterator[HashedFile]:
    """A file to write in the block, whose hash is in sums, by its name, after it."""
    with HashedFile(path) as file:
        yield file
    sums[path.name] = file.sha256()
