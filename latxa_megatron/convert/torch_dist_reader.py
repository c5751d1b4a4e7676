"""Reads rows of the tensors in a torch_dist directory, in the memory of these rows, whatever ranks wrote it.

Each stored part of a tensor is a zip archive that torch.save wrote into one of the files, uncompressed. Its rows are read from
where they stand; with the first of them the whole part is held to the checksum that it was written with. torch.load does not.
"""

import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from latxa_megatron.convert.pickles import load_safely, read_metadata
from latxa_megatron.errors import LatxaError

COMMON = "common.pt"
METADATA = ".metadata"
CHECKED_BYTES = 1 << 18
MEND = "copy or make the checkpoint again"
_COMMON_KEY = "common_state/shard_0_1"


class TorchDistReader:
    """The tensors of a checkpoint by name. Needs no process group.

    Raises LatxaError for a directory that is no torch_dist checkpoint, and from check and read for files that are damaged.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sizes: dict[str, int] = {}
        self._by_layer: dict[str, dict[int, list[ChunkStorageMetadata]]] = {}
        self._numbers: dict[tuple[str, int], _Numbers] = {}
        self._checked: set[tuple[str, int]] = set()
        try:
            self._metadata = read_metadata(directory / METADATA)
        except Exception as error:  # a damaged pickle raises anything
            raise LatxaError(f"{directory / METADATA}: is no whole list of tensors ({error}); {MEND}") from None

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self._metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise LatxaError(f"{self._directory}: has no tensor {name}; it is the checkpoint of another model")
        return stored

    def common(self) -> dict[str, Any]:
        """What is no tensor, of the program that wrote it; nothing where it is damaged.

        Up to megatron-core 0.18 it is a file of its own, from 0.19 an object among the tensors. No code of it is run: what is of
        a class that torch does not know as safe, as one of a newer megatron-core, is an object without content.
        """
        try:
            if (self._directory / COMMON).is_file():
                found = load_safely((self._directory / COMMON).read_bytes())
            else:
                info = self._metadata.storage_data[MetadataIndex(_COMMON_KEY)]
                with (self._directory / info.relative_path).open("rb") as file:
                    file.seek(info.offset)
                    found = load_safely(file.read(info.length))[0]
        except Exception:
            return {}
        return found if isinstance(found, dict) else {}

    def names(self) -> set[str]:
        return {name for name, stored in self._metadata.state_dict_metadata.items() if isinstance(stored, TensorStorageMetadata)}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._stored(name).size)

    def dtype(self, name: str) -> torch.dtype:
        return self._stored(name).properties.dtype

    def check(self, name: str) -> None:
        """Raise LatxaError where not all of a tensor is there, by the list of its parts and the sizes of the files."""
        stored, held = self._stored(name), 0
        for chunk in stored.chunks:
            info = self._metadata.storage_data.get(MetadataIndex(name, chunk.offsets))
            if info is None or self._size(info.relative_path) < info.offset + info.length:
                where = "the files" if info is None else info.relative_path
                raise LatxaError(f"{self._directory}: a part of {name} is missing from {where}; {MEND}")
            held += chunk.sizes.numel()
        if held != stored.size.numel():
            raise LatxaError(f"{self._directory}: {name} is not whole; {MEND}")

    def _size(self, file: str) -> int:
        """In bytes; 0 for a file that is missing."""
        if file not in self._sizes:
            path = self._directory / file
            self._sizes[file] = path.stat().st_size if path.is_file() else 0
        return self._sizes[file]

    def read(self, name: str, layer: int | None = None, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of a tensor, or with `layer` of that entry of its first axis, which is not in the result."""
        stored = self._stored(name)
        axis = 0 if layer is None else 1
        sizes = stored.size[axis:]
        stop = sizes[0] if stop is None else stop
        found = torch.empty((stop - start, *sizes[1:]), dtype=stored.properties.dtype)
        left = found.numel()
        for chunk in self._chunks(name, layer):
            first, last = max(start, chunk.offsets[axis]), min(stop, chunk.offsets[axis] + chunk.sizes[axis])
            if first < last:
                place = found[first - start : last - start]
                for dim in range(1, place.dim()):  # tensor parallelism cuts some along columns
                    place = place.narrow(dim, chunk.offsets[axis + dim], chunk.sizes[axis + dim])
                skipped = first - chunk.offsets[axis]
                if layer is not None:
                    skipped += (layer - chunk.offsets[0]) * chunk.sizes[1]
                self._fill(place, name, chunk, skipped)
                left -= place.numel()
        if left:
            raise LatxaError(f"{self._directory}: {name} is not whole; {MEND}")
        return found

    def _chunks(self, name: str, layer: int | None) -> list[ChunkStorageMetadata]:
        """The stored parts of a tensor, or those that have something of an entry of its first axis."""
        stored = self._stored(name)
        if layer is None:
            return stored.chunks
        if name not in self._by_layer:
            found: dict[int, list[ChunkStorageMetadata]] = {}
            for chunk in stored.chunks:
                for each in range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]):
                    found.setdefault(each, []).append(chunk)
            self._by_layer[name] = found
        return self._by_layer[name].get(layer, [])

    def _fill(self, place: Tensor, name: str, chunk: ChunkStorageMetadata, skipped: int) -> None:
        """Put into `place` as many rows of a stored part as it has, after so many others."""
        rows = place if place.is_contiguous() else torch.empty(place.shape, dtype=place.dtype)
        info = self._metadata.storage_data[MetadataIndex(name, chunk.offsets)]
        path = self._directory / info.relative_path
        try:
            with path.open("rb") as file:
                if (where := (info.relative_path, info.offset)) not in self._numbers:
                    self._numbers[where] = _numbers(file, info.offset, info.length)
                begin, length, checksum, in_order = self._numbers[where]
                if length != chunk.sizes.numel() * rows.itemsize:
                    raise ValueError("a part has another size than it says")
                content = rows.view(torch.uint8).numpy().data.cast("B")
                if in_order:
                    file.seek(begin + skipped * (rows.nbytes // len(rows)))
                    if file.readinto(content) != rows.nbytes:
                        raise EOFError("a file ends too early")
                else:
                    file.seek(info.offset)
                    whole = torch.load(io.BytesIO(file.read(info.length)), weights_only=True)
                    rows.copy_(whole.reshape(-1, *rows.shape[1:])[skipped : skipped + len(rows)])
                if where not in self._checked:
                    all_of_it = in_order and len(content) == length
                    if checksum and checksum != (zlib.crc32(content) if all_of_it else _checksum(file, begin, length)):
                        raise ValueError("its checksum is another than was written")
                    self._checked.add(where)
        except (OSError, EOFError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise LatxaError(f"{path}: a part of {name} is damaged ({error}); {MEND}") from None
        if rows is not place:
            place.copy_(rows)


class _Strides(pickle.Unpickler):
    """Reads of a tensor that torch.save wrote where in its numbers it begins, its size, and its strides."""

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild_tensor"):
            return lambda storage, *place: place[:3]
        if module == "torch._utils" and name.startswith("_rebuild_parameter"):
            return lambda place, *_: place
        if module in ("torch", "torch.storage", "collections"):  # the kind of the numbers, and a dictionary of hooks
            return dict if name == "OrderedDict" else name
        raise ValueError(f"a part is a {module}.{name}")


class _Numbers(NamedTuple):
    """Where in a file the numbers of a part begin, their bytes and CRC-32, and whether they stand in the order of its rows.

    Those of a transposed tensor do not. The checksum is 0 where torch.save was told to write none.
    """

    begin: int
    length: int
    checksum: int
    in_order: bool


def _numbers(file: Any, offset: int, length: int) -> _Numbers:
    """Of the tensor that torch.save wrote at an offset."""
    with zipfile.ZipFile(_Slice(file, offset, length)) as archive:
        entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data/0")), None)
        described = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
        pickled = b"" if described is None else archive.read(described)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("a part is not as torch.save writes it")
    file.seek(offset + entry.header_offset)
    header = file.read(30)  # of which the last four bytes are the lengths of the name and of what follows it
    try:
        begin, sizes, strides = _Strides(io.BytesIO(pickled)).load()
        in_order = torch.empty_strided(sizes, strides, device="meta").is_contiguous() and begin == 0
    except Exception as error:  # of what is no tensor, anything
        raise ValueError(f"a part is not as torch.save writes it: {error}") from None
    place = offset + entry.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    return _Numbers(place, entry.file_size, entry.CRC, in_order)


def _checksum(file: Any, begin: int, length: int) -> int:
    """CRC-32 of so many bytes of a file."""
    block = memoryview(bytearray(CHECKED_BYTES))
    found = 0
    file.seek(begin)
    while length:
        size = file.readinto(block[:length])
        if not size:
            raise EOFError("a file ends too early")
        found = zlib.crc32(block[:size], found)
        length -= size
    return found


class _Slice(io.RawIOBase):
    """A part of a file as a file, for zipfile, which looks at its end first."""

    def __init__(self, file: Any, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        if self._at < 0:
            raise ValueError("a place before the beginning")
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._at, 0)
        self._file.seek(self._offset + self._at)
        found: bytes = self._file.read(left if size < 0 else min(size, left))
        self._at += len(found)
        return found
