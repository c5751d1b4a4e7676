"""Data sets of the Hugging Face hub: the files that are meant are downloaded into huggingface_hub's cache, and read there.

hf:OWNER/NAME[@REVISION][/FOLDER_OR_GLOB][:SPLIT]
"""

import glob
import re
from fnmatch import fnmatchcase
from pathlib import Path

from latxa_megatron.data.layouts import choose, split_of
from latxa_megatron.data.readers import file_format
from latxa_megatron.errors import LatxaError

HUB = "hf:"

_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>refs/\w+/\w+|[^/:]+))?(/(?P<path>[^:]+))?(:(?P<split>[\w.-]+))?"
)


def fetch(name: str) -> list[Path]:
    """The files of a data set, or of a part of one, downloaded where they are not yet in the cache.

    Raises LatxaError for a name of another form, where the hub cannot be reached or has no such data set, and where it is not
    clear which of its files are meant.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise LatxaError(f"{name}: has the form hf:OWNER/NAME[@REVISION][/FOLDER_OR_GLOB][:SPLIT]")
    try:
        return _fetch(name, parts["repository"], parts["revision"], (parts["path"] or "").strip("/"), parts["split"])
    except LatxaError:
        raise
    except Exception as error:  # huggingface_hub raises its own, its HTTP library's and the system's
        raise LatxaError(f"{name}: {_why(error)}") from None


def _fetch(name: str, repository: str, revision: str | None, path: str, split: str | None) -> list[Path]:
    import huggingface_hub

    info = huggingface_hub.HfApi().dataset_info(repository, revision=revision)
    files = _part([file.rfilename for file in info.siblings or []], name.rpartition(":")[0] if split else name, path, split)
    patterns = [glob.escape(file) for file in files]
    root = huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=info.sha, allow_patterns=patterns)
    return [Path(root, file) for file in files]


def _part(files: list[str], where: str, path: str, split: str | None) -> list[str]:
    """The files that path and split mean: those that match a glob, all of them; of a folder, or the whole, those of one split."""
    if glob.has_magic(path) or path in files:
        matched = sorted(file for file in files if fnmatchcase(file, path) and file_format(file))
        found = [file for file in matched if split is None or split_of(file) == split]
        if not found:
            raise LatxaError(f"{where}: no Parquet, Arrow or JSONL file of the data set matches")
        return found
    below = [file for file in files if not path or file.startswith(path + "/")]
    if not below:
        raise LatxaError(f"{where}: the data set has no such file or folder")
    inside = choose([file[len(path) + 1 if path else 0 :] for file in below], where, split)
    return [f"{path}/{file}" if path else file for file in inside]


def _why(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the data set asks for consent to its terms; give it on its page, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the data set has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such data set, or shows it only after `hf auth login`"
    reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    return f"cannot be fetched ({reason}); without network, give the directory of one that was downloaded before"
