"""Which files of a data set are read, where it is given as a directory or as a repository of the Hugging Face hub.

A directory that `datasets` has saved says it in its notes. Elsewhere the names do, as on the hub: a split is what
`train-00000-of-00003.parquet` begins with, or the word train, validation or test in a path. Where it is not clear what is
meant, the user is asked: nobody wants to train on a test split, or on 300 languages, for want of a word.
"""

import re
from pathlib import Path, PurePosixPath

from latxa_megatron.data.readers import file_format
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import read_json

_NOTES = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_SHARD = re.compile(r"(.+?)-(\d{5})-of-(\d{5})")
_NO_SPLIT = ("data", "part")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def files_of_directory(directory: Path, split: str | None = None) -> list[Path]:
    """The files of a data set, in order. Raises LatxaError where they cannot be told, or one is missing."""
    if (directory / "dataset_dict.json").is_file():
        splits = [str(name) for name in read_json(directory / "dataset_dict.json")["splits"]]
        return files_of_directory(directory / _the_split(splits, str(directory), split))
    if (directory / "state.json").is_file():
        found = [directory / each["filename"] for each in read_json(directory / "state.json")["_data_files"]]
        for path in found:
            if not path.is_file():
                raise LatxaError(f"{path}: is missing, and {directory / 'state.json'} names it")
        return found
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return [directory / name for name in choose(names, str(directory), split)]


def choose(names: list[str], where: str, split: str | None = None) -> list[str]:
    """Of the files of a data set, by their paths in it, those of one split, sorted. where: how the user has named the data set.

    Raises LatxaError where there are several formats, several splits and none was asked for, or several folders, or one of
    NAME-00000-of-00003 and its like is missing.
    """
    files = sorted(name for name in names if _is_data(PurePosixPath(name)))
    if len({file_format(name) for name in files}) > 1:
        files = [name for name in files if not name.endswith(".json")]  # of notes, most often
    formats = sorted({str(file_format(name)) for name in files})
    if not files:
        raise LatxaError(f"{where}: holds no Parquet, Arrow or JSONL file")
    if len(formats) > 1:
        raise LatxaError(f"{where}: holds {' and '.join(formats)} files; name those of one kind, as in {where}/*{formats[-1]}")
    wanted = _the_split([split_of(name) for name in files], where, split)
    files = [name for name in files if split_of(name) == wanted]
    folders = sorted({str(PurePosixPath(name).parent) for name in files})
    if len(folders) > 1:
        named = ", ".join(folders[:3]) + (f" and {len(folders) - 3} more" if len(folders) > 3 else "")
        raise LatxaError(f"{where}: has files in the folders {named}; name one, as in {where}/{folders[-1]}, or files, by a glob")
    _check_complete(files, where)
    return files


def split_of(name: str) -> str:
    """The split that a file's path names; "" where it names none."""
    path = PurePosixPath(name)
    shard = _SHARD.match(path.name)
    if shard and shard[1] not in _NO_SPLIT:
        return _SPLITS.get(shard[1].lower(), shard[1])
    words = [word for part in reversed(path.parts) for word in re.split("[^a-z]+", part.lower())]
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def _is_data(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    return file_format(path.name) is not None and path.name not in _NOTES and not hidden


def _the_split(splits: list[str], where: str, split: str | None) -> str:
    """The one that was asked for, or the only one."""
    there = sorted(set(splits))
    named = ", ".join(name or "(none)" for name in there)
    if split is not None:
        for name in (split, _SPLITS.get(split, split)):
            if name in there:
                return name
        raise LatxaError(f"{where}: has no split '{split}'; its files are of {named}")
    if len(there) > 1:
        first = "train" if "train" in there else there[-1]
        raise LatxaError(f"{where}: has files of the splits {named}; name one, as in {where}:{first}, or files, by a glob")
    return there[0]


def _check_complete(files: list[str], where: str) -> None:
    shards = [shard for name in files if (shard := _SHARD.match(PurePosixPath(name).name))]
    there = {shard[0] for shard in shards}
    for start, total in {(shard[1], shard[3]) for shard in shards}:
        for i in range(int(total)):
            if (name := f"{start}-{i:05d}-of-{total}") not in there:
                raise LatxaError(f"{where}: {name} is missing among {len(there)} such files; fetch the data set again")
