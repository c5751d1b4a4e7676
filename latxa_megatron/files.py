"""Outputs that appear whole or not at all, and the fingerprints that name inputs."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from latxa_megatron.errors import LatxaError


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form, in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write text so that a reader, or a crash at any instant, sees the old file or the new one."""
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # of a full disk, it names no file
        raise OSError(error.errno, error.strerror, str(path)) from None
    partial.replace(path)


def as_json(value: Any) -> str:
    """The text of every JSON file that is written here: indented by two spaces, keys sorted, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, as_json(value))


def read_json(path: Path) -> Any:
    """The JSON value of a file; LatxaError where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LatxaError(f"{path}: there is no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LatxaError(f"{path}: is not valid JSON ({error}); make it again") from None


def read_json_lines(path: Path) -> list[Any]:
    """The values of a file that grows by a JSON line at a time, oldest first; a line that a kill cut short is left out.

    Empty where there is no such file.
    """
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]


def append_json_line(path: Path, value: Any) -> None:
    """Add a line to such a file, in place of one that a kill cut short."""
    with path.open("ab+") as file:
        whole = file.seek(0, os.SEEK_END)
        while whole:
            file.seek(whole - 1)
            if file.read(1) == b"\n":
                break
            whole -= 1
        file.truncate(whole)
        file.write(json.dumps(value).encode() + b"\n")


def require_space(directory: Path, size: int) -> None:
    """Raise LatxaError where the disk of a directory has not so many bytes left."""
    free = shutil.disk_usage(directory).free
    if free < size:
        raise LatxaError(f"{directory}: {decimal(size)} are to be written, and {decimal(free)} are free")


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory `path.partial` to fill, renamed to `path` at the end of the block and removed if the block fails.

    What a killed run left is cleared first. Raises LatxaError if `path` exists, and InUse if another process fills it.
    """
    _refuse(path)
    partial = path.with_name(path.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, "writing it") as descriptor:
        _refuse(path)  # the process that held the lock before this one has finished
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise InUse(f"{partial}: another process has just removed it; start again")
        _empty(partial)
        try:
            yield partial
            move_into_place(partial, path)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # a write to a full disk
                raise OSError(error.errno, error.strerror, str(partial)) from None
            raise


def _refuse(path: Path) -> None:
    if path.exists():
        raise LatxaError(f"{path}: exists already; remove it or name another directory")


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def move_into_place(partial: Path, final: Path) -> None:
    """Rename a directory once all of it is on the disk, so that what has the final name is whole even after a power cut."""
    for entry in (*partial.rglob("*"), partial):
        _flush(entry)
    partial.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class InUse(LatxaError):
    """Another process holds what this one wanted to lock."""


@contextmanager
def locked(path: Path, what: str, seconds: float = 0, *, shared: bool = False) -> Iterator[int]:
    """Hold a directory or file for this process alone, or with all who hold it shared; the kernel lets go when the process and
    those it forked end, however they end. Yields the descriptor that is held: what has the name by now may be another.

    Raises InUse where another process still holds it after so many seconds.
    """
    descriptor = os.open(path, os.O_RDONLY)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    last = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= last:
                    raise InUse(f"{path}: another process is {what}; wait for it or stop it") from None
                time.sleep(0.5)
        yield descriptor
    finally:
        os.close(descriptor)
