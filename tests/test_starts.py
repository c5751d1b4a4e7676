"""starts.jsonl: what each start of a run did, whatever became of it."""

import pytest

from latxa_megatron.errors import LatxaError
from latxa_megatron.files import append_json_line, read_json_lines
from latxa_megatron.starts import FILE, Start, read_starts


def start(out, *, finished=None, error=None):
    with Start(out, 8, write=True) as it:
        it.began(3, 9)
        if error:
            raise error
        it.ended(finished=finished)


def test_each_way_to_end(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    start(tmp_path, finished=False)
    for error in (LatxaError("hf: there is none\nand more"), RuntimeError("CUDA error"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            start(tmp_path, error=error)
    start(tmp_path, finished=True)
    begun, ends = read_starts(tmp_path)[::2], read_starts(tmp_path)[1::2]
    for line in begun:
        assert (line["event"], line["ranks"], line["job"], line["step"], line["steps"]) == ("start", 8, "42", 3, 9)
    assert [line["how"] for line in ends] == ["stopped", "error", "crash", "crash", "finished"]
    assert [line.get("error") for line in ends] == [None, "hf: there is none", "CUDA error", "KeyboardInterrupt()", None]
    times = [line["time"] for line in read_starts(tmp_path)]
    assert times == sorted(times)


def test_one_rank_writes(tmp_path):
    with Start(tmp_path, 8, write=False) as it:
        it.began(0, 9)
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_a_kill_cut_short(tmp_path):
    file = tmp_path / FILE
    append_json_line(file, {"a": 1})
    append_json_line(file, {"a": 2})
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        there = read_json_lines(file)
        assert there == [{"a": 1}, {"a": 2}][: whole[:size].count(b"\n")]
        append_json_line(file, {"a": 3})
        assert read_json_lines(file) == [*there, {"a": 3}]
