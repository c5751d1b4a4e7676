"""The collective operations that this rank has begun and that have not ended, by the record that torch keeps of them."""

import json
from typing import Any

from torch._C import _distributed_c10d as c10d

from latxa_megatron.model import device


def unfinished() -> list[str]:
    """The oldest of each process group, such as "all_reduce, no. 57 of DATA_PARALLEL_GROUP"; none by a torch without a record.

    Those that a CUDA graph starts are not told, nor are messages between two ranks over gloo. Asks CUDA, which may not answer.
    """
    dump = getattr(c10d, "_dump_nccl_trace_json" if device.on_gpu() else "_dump_fr_trace_json", None)
    try:
        return [] if dump is None else oldest(json.loads(dump(True, False)))
    except Exception as error:  # what is torch's own may change, and a report without it is better than none
        return [f"unknown, for torch's record cannot be read: {error!r}"]


def oldest(record: dict[str, Any]) -> list[str]:
    """The same of such a record: torch's flight recorder, as JSON.

    A group's operations end in the order in which they began. Parts of one that is made of several are never said to have
    ended, but it is, and comes after them.
    """
    found: dict[int, str] = {}
    for entry in record.get("entries", []):
        group = entry["pg_id"]
        if entry["retired"]:
            found.pop(group, None)
        else:
            number = entry["p2p_seq_id" if entry["is_p2p"] else "collective_seq_id"]
            name = entry["profiling_name"].partition(":")[2]
            found.setdefault(group, f"{name}, no. {number} of {entry['process_group'][1] or 'a group without a name'}")
    return list(found.values())
