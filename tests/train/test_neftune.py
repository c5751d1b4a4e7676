"""NEFTune in training: the same under every layout, and there at all."""

import pytest

from latxa_megatron.train.metrics import read_metrics
from tests.train.conftest import WITH_NOISE


def losses(run, name: str) -> list[float]:
    return [line["loss"] for line in read_metrics(run.out(name))]


@pytest.mark.parametrize("name", WITH_NOISE)
def test_the_same_noise_under_every_layout(name, finished):
    assert len(losses(finished, name)) == 5
    assert losses(finished, name) == pytest.approx(losses(finished, "noisy"), abs=1e-5, rel=0)


def test_the_noise_changes_the_loss(finished):
    noisy, plain = losses(finished, "noisy"), losses(finished, "one process")
    assert abs(noisy[0] - plain[0]) > 1e-3


def test_no_checkpoint_where_none_is_asked_for(finished):
    assert not (finished.out("noisy") / "checkpoints").exists()
