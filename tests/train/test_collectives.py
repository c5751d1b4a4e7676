"""What a rank waits in, out of the record that torch keeps of its collective operations."""

import pytest

from latxa_megatron.train import collectives
from latxa_megatron.train.collectives import oldest, unfinished


def entry(group: int, number: int, name: str, *, retired: bool = False, p2p: bool = False) -> dict:
    return {
        "pg_id": group,
        "process_group": [str(group), ["WORLD", "DATA_PARALLEL_GROUP", ""][group]],
        "collective_seq_id": 0 if p2p else number,
        "p2p_seq_id": number if p2p else 0,
        "profiling_name": f"nccl:{name}",
        "retired": retired,
        "is_p2p": p2p,
    }


def status(ended: int, begun: int) -> dict:
    return {"last_completed_collective": str(ended), "last_enqueued_collective": str(begun)}


def test_the_oldest_of_each_group():
    """Parts of a coalesced operation never retire: those of one that has ended do not count."""
    record = {
        "pg_status": {"0": status(7, 7), "1": status(56, 58), "2": status(-1, 1)},
        "entries": [
            entry(1, 56, "all_gather"),
            entry(1, 56, "coalesced", retired=True),
            entry(0, 7, "barrier", retired=True),
            entry(1, 57, "reduce_scatter"),
            entry(1, 58, "all_reduce"),
            entry(2, 1, "recv 0<-1", p2p=True),
        ],
    }
    assert oldest(record) == ["reduce_scatter, no. 57 of DATA_PARALLEL_GROUP", "recv 0<-1, no. 1 of a group without a name"]


@pytest.mark.parametrize("said", [b"", b"{}", b'{"entries": [{}]}'])
def test_a_record_of_another_form_does_not_stop_the_report(said, monkeypatch):
    monkeypatch.setattr(collectives.c10d, "_dump_fr_trace_json", lambda *_: said)
    (words,) = unfinished()
    assert words.startswith("unknown")
