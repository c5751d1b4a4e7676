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


def test_the_oldest_of_each_group():
    """Messages between two ranks are counted apart from what all take part in; the parts of several in one never retire."""
    pipeline = [entry(2, 40, "recv 0<-1", p2p=True), entry(2, 40, "coalesced", p2p=True, retired=True)]
    entries = [
        entry(1, 56, "all_gather"),
        entry(1, 56, "coalesced", retired=True),
        *pipeline,
        entry(0, 7, "barrier", retired=True),
        entry(2, 3, "broadcast"),
        entry(1, 57, "reduce_scatter"),
        entry(1, 58, "all_reduce"),
    ]
    waits = "reduce_scatter, no. 57 of DATA_PARALLEL_GROUP"
    assert oldest({"entries": entries}) == ["broadcast, no. 3 of a group without a name", waits]
    entries = [*pipeline, entry(2, 3, "broadcast", retired=True), entry(2, 41, "recv 0<-1", p2p=True)]
    assert oldest({"entries": entries}) == ["recv 0<-1, no. 41 of a group without a name"]
    assert oldest({}) == []  # as TORCH_FR_BUFFER_SIZE=0 has it


@pytest.mark.parametrize("said", [b"", b'{"entries": [{}]}'])
def test_a_record_of_another_form_does_not_stop_the_report(said, monkeypatch):
    monkeypatch.setattr(collectives.c10d, "_dump_fr_trace_json", lambda *_: said)
    (words,) = unfinished()
    assert words.startswith("unknown")
