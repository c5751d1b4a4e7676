"""What messages cost, worked by hand: Llama 8B; 450 GB/s of NVLink and 50 of network for each GPU, of which 0.8 are reached."""

from dataclasses import replace

import pytest

from latxa_megatron.config import load_run
from latxa_megatron.plan.estimate import estimate
from latxa_megatron.plan.gpus import find_gpu

LINK, NETWORK = 450e9 * 0.8, 50e9 * 0.8
PARAMETERS = 32 * (4096 * 128 * 80 + 3 * 4096 * 14336) + 2 * 128256 * 4096


def seconds(run_file, gpus, *overrides, gpu=None, **given):
    return estimate(load_run(run_file, list(overrides)), gpu or find_gpu("h100-80g"), gpus, **given).seconds


def one(found, microbatches):
    return (found.products + found.attention + found.memory_bound + found.tp_messages + found.launches) / microbatches


@pytest.mark.parametrize(("node", "speed"), [(8, LINK), (4, 4 * NETWORK), (1, NETWORK)])
def test_tp(run_file, node, speed):
    """TP8: each of 32 layers seven times, 8192 x 4096 numbers in bf16, of which 7/8 come from elsewhere.

    On nodes of 4 each of a node's four GPUs has a card of its own: NCCL has as many rings.
    """
    found = seconds(run_file, 8, "parallel.tp=8", "train.global_batch=1", node=node)
    assert found.tp_messages == pytest.approx(32 * 7 * 2 * 8192 * 4096 * 7 / 8 / speed)


@pytest.mark.parametrize(
    ("gpus", "tp", "speed"), [(8, 1, LINK), (16, 1, 8 * NETWORK), (64, 4, 2 * NETWORK), (64, 8, NETWORK), (8, 4, LINK)]
)
def test_dp(run_file, gpus, tp, speed):
    """Gradients in fp32 count where the last backward pass is too short; weights in bf16, where the first forward one is.

    Under TP4 a node of 8 has two ranks of a data-parallel group, and so two cards for it. All links at a tenth of their speed.
    """
    dp, gpu = gpus // tp, find_gpu("h100-80g")
    slow = replace(gpu, link=gpu.link / 10, network=gpu.network / 10)
    short = ["data.seq_length=128", f"parallel.tp={tp}", f"train.global_batch={dp}"]
    found = seconds(run_file, gpus, *short, gpu=slow)
    each = PARAMETERS / tp * (dp - 1) / dp / (speed / 10)
    waits = max(0, 4 * each - one(found, 1) * 2 / 3) + max(0, 2 * each - one(found, 1) / 3)
    assert found.dp_messages == pytest.approx(waits)
    assert waits > each
    assert seconds(run_file, gpus, *short[1:], gpu=slow).dp_messages < waits


@pytest.mark.parametrize(("vp", "waited"), [(1, 3 + 16), (2, 3)])
@pytest.mark.parametrize(("gpus", "speed"), [(8, LINK), (16, NETWORK)])
def test_pp(run_file, vp, waited, gpus, speed):
    """PP4, TP2, 16 microbatches: half of 8192 x 4096 numbers in bf16 on to the next stage, and as many back."""
    layout = ["parallel.pp=4", "parallel.tp=2", f"parallel.vp={vp}", f"train.global_batch={16 * gpus // 8}"]
    assert seconds(run_file, gpus, *layout).pp_messages == pytest.approx(waited * 2 * (2 * 8192 * 4096 / 2) / speed)
    assert seconds(run_file, gpus, "train.global_batch=16").pp_messages == 0


def test_cp(run_file):
    """CP2, 32 layers, three times round: 2 x 1024 keys and values of 4096 positions in bf16, 16.8 MB.

    Attention takes 6 x 32 x 4096 x 4096 x document / 495e12, and in pieces 270 bytes' time of each number of queries more. Over a
    network of a tenth its messages take longer.
    """
    layout = ["parallel.cp=2", "train.global_batch=4"]
    ring = 32 * 3 * (2 * 1024 * 2 * 4096)
    pieces = 32 * 4096 * 4096 * 270 / 3.35e12
    found = seconds(run_file, 8, *layout, document=100)
    assert found.attention == pytest.approx(6 * 32 * 4096 * 4096 * 100 / 495e12 + pieces)
    assert found.cp_messages == 0
    across = seconds(run_file, 8, *layout, gpu=replace(find_gpu("h100-80g"), network=5), document=100, node=1)
    assert across.cp_messages == pytest.approx(ring / (NETWORK / 10) - found.attention)


def test_a_document_is_no_longer_than_a_sample(run_file):
    assert seconds(run_file, 8, document=1e9).attention == seconds(run_file, 8, document=8192).attention


def test_launches(run_file):
    """A layer of 128 positions takes the CPU 3 ms to start, and a third more where it is computed again; one of 8192 less."""
    short = ["data.seq_length=128", "train.global_batch=16", "precision.gradients=bf16"]
    for more, layers in ((), 32), (["train.recompute=6"], 34):
        found = seconds(run_file, 1, *short, *more)
        assert found.step - found.optimizer == pytest.approx(16 * layers * 3e-3)
    assert seconds(run_file, 1, "train.global_batch=16").launches == 0
