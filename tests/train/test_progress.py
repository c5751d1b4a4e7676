"""The lines that `latxa train` prints."""

import io

import pytest
from rich.console import Console

from latxa_megatron.train.progress import watching


def line(step: int) -> dict:
    return {
        "step": step,
        "loss": 4.5 - step / 10,
        "seconds": 90.0,
        "positions_per_second_per_rank": 11500.4,
        "model_tflops_per_rank": 744.12,
    }


def printed(steps, *, seconds: float, total: int = 20, terminal: bool = False, width: int = 80) -> str:
    """What is printed of these steps, each `seconds` after the one before."""
    out, now = io.StringIO(), [100.0]
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    with watching(console, clock=lambda: now[0]) as watch:
        for step in steps:
            watch(total, line(step))
            now[0] += seconds
    return out.getvalue()


def test_a_line_of_a_log():
    lines = printed([3, 4, 5], seconds=10.0, width=20).splitlines()  # a log is not wrapped
    assert lines[0] == "step 3/20  loss 4.200  11,500 tokens/s/process  744 TFLOP/s  ETA 0:25:30"  # 17 x the step's own 90 s
    assert lines[2].endswith("ETA 0:02:30")  # 15 x 10 s
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("steps", "total", "expected"),
    [
        (range(1, 21), 20, [1, 6, 11, 16, 20]),  # one each 5 seconds, and the last
        (range(1, 19), 20, [1, 6, 11, 16, 18]),  # the last also where the run is stopped before its end
        ([1], 1, [1]),
        ([], 20, []),
    ],
)
def test_fast_steps_do_not_fill_a_log(steps, total, expected):
    lines = printed(steps, seconds=1.0, total=total).splitlines()
    assert [int(each.split()[1].partition("/")[0]) for each in lines] == expected


def test_the_last_step_is_printed_when_a_run_fails():
    out = io.StringIO()

    def fail() -> None:
        with watching(Console(file=out, width=80), clock=lambda: 0.0) as watch:
            watch(9, line(1))
            watch(9, line(2))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [each.split()[1] for each in out.getvalue().splitlines()] == ["1/9", "2/9"]


def test_a_terminal_has_one_line_that_changes():
    text = printed([1, 2, 3], seconds=10.0, terminal=True)
    assert text.count("\n") == 1  # at the end
    assert "step 3/20  loss 4.200  11,500 tokens/s/process  744 TFLOP/s  ETA 0:02:50" in text  # not cut at 80 columns
