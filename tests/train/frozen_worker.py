"""A run whose rank 1 freezes in its fifth step, in its first start only. Run under ft_launcher by test_heartbeat.py."""

import os
import signal
import sys
import warnings
from pathlib import Path


def main() -> None:
    from latxa_megatron.config import load_run  # not above: each save starts a process that imports this file again
    from latxa_megatron.train import step
    from latxa_megatron.train.loop import train

    calls, real = 0, step.forward_backward

    def freezing(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            signal.raise_signal(signal.SIGSTOP)  # no thread of the process goes on
        return real(*arguments, **options)

    step.forward_backward = freezing
    train(load_run(Path(sys.argv[1]), sys.argv[2:]))
    sys.stdout.write(f"rank {os.environ['RANK']} did {calls} steps\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
