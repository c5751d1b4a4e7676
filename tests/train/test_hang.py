"""A rank that does not come back is named, and the run ends."""

import subprocess
import sys
from pathlib import Path

from latxa_megatron.train.hang import rank_file, report
from latxa_megatron.train.metrics import read_metrics

WAITING = """Timeout (0:30:00)!
Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait

Thread 0x00007f02 (most recent call first):
  File "/venv/torch/distributed/distributed_c10d.py", line 3000 in all_reduce
  File "/venv/latxa_megatron/train/step.py", line 190 in train_step
  File "/venv/latxa_megatron/train/loop.py", line 60 in _train
"""
MESSAGE = "not ended: all_reduce, no. 57 of DATA_PARALLEL_GROUP\n"
READING = WAITING.replace("train/step.py", "data/dataset.py").replace("in train_step", "in batch").replace("all_reduce", "read")


def test_who_stands_where(tmp_path):
    for rank, text in {0: WAITING + MESSAGE, 1: WAITING + MESSAGE, 3: READING}.items():
        rank_file(tmp_path, rank).write_text(text)
    assert report(tmp_path, 4).splitlines()[1:] == [
        "  rank 2: wrote no stack: it ended, or its machine did",
        "  rank 3: read (distributed/distributed_c10d.py:3000), called from batch (data/dataset.py:190)",
        "  ranks 0, 1: all_reduce (distributed/distributed_c10d.py:3000), called from train_step (train/step.py:190)"
        "; not ended: all_reduce, no. 57 of DATA_PARALLEL_GROUP",
    ]


def test_a_run_that_hangs_ends_and_names_the_rank(tiny_run):
    out = tiny_run.out("hung")
    worker = Path(__file__).with_name("hung_worker.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    overrides = [f"out={out}", "train.steps=5", "guard.hang_minutes=0.2"]
    done = subprocess.run([*torchrun, worker, tiny_run.file, *overrides], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(read_metrics(out)) == 1
    said = (out / "hung" / "report.txt").read_text()
    assert said in done.stderr
    assert "  rank 1: stuck (train/hung_worker.py:" in said
    assert "called from train_step (train/step.py:" in said
    (waiting,) = [line for line in said.splitlines() if line.startswith("  rank 0: ")]
    assert "hung_worker" not in waiting.split(",")[0]
    assert "; not ended: all_gather, no. " in waiting
