"""Values changed in a run file's text: what YAML reads of it then, and that all else stands as it did."""

import pytest
import yaml

from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.plan.run_file import write_layout

HEAD = "# head\nname: r\nmodel: {hf: hf}  # model\ndata: {store: s, plan: p}\n"
VALUES = {"parallel.tp": 4, "parallel.pp": 2, "parallel.stages": None, "train.recompute": 3, "train.micro_batch": 2}

WAYS = {
    "no sections": "",
    "flow": "parallel: {tp: 2, stages: [1, 2]}  # layout\ntrain: {recompute: none}\n",
    "block": "parallel:\n  # sizes\n  tp: 2  # two\n  pp: 1\n\n# batch\ntrain:\n  global_batch: 16  # sixteen\n",
    "stages in a block": "parallel:\n  pp: 3\n  stages:\n  - 1\n  - 2  # of the last\n  - 3\n  tp: 2\ntrain:\n    micro_batch: 1",
    "empty sections": "train: {}\nparallel: {}  # layout\n",
    "quoted keys": "'parallel': {\"tp\": 2}\n",
}


@pytest.mark.parametrize("text", WAYS.values(), ids=WAYS)
def test_values_are_changed_and_all_else_stays(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(HEAD + text)
    before = yaml.safe_load(file.read_text())
    write_layout(file, VALUES)
    after, expected = yaml.safe_load(file.read_text()), {**before}
    for key, value in VALUES.items():
        section, _, name = key.partition(".")
        expected[section] = {**(expected.get(section) or {}), name: value}
    assert after == expected
    assert file.read_text().startswith(HEAD)
    for comment in ("# layout", "# sizes", "# two", "# batch", "# sixteen"):
        assert (comment in file.read_text()) == (comment in text)
    run = load_run(file)
    assert (run.parallel.tp, run.parallel.pp, run.train.recompute) == (4, 2, 3)


def test_lines_that_do_not_change_are_the_same_bytes(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(HEAD + WAYS["block"])
    write_layout(file, {"parallel.tp": 8, "parallel.vp": 1})
    assert file.read_text() == HEAD + WAYS["block"].replace("tp: 2  # two\n  pp: 1\n", "tp: 8  # two\n  pp: 1\n  vp: 1\n")


def test_a_file_that_cannot_be_changed_so_stays(tmp_path):
    text = HEAD + "optimizer: {warmup: &one 0}\nparallel: &same {tp: 2}\ntrain: {micro_batch: 1}\nvalidation: {}\nx: *same\n"
    file = tmp_path / "run.yaml"
    file.write_text(text.replace("x: *same\n", ""))
    write_layout(file, {"parallel.tp": 4})  # an anchor that nothing refers to stays where it was
    assert "&one 0" in file.read_text()
    file.write_text(HEAD + "parallel: {tp: &two 2, pp: *two}\n")
    with pytest.raises(LatxaError, match=r"--write cannot change; set parallel.pp=4 in it yourself"):
        write_layout(file, {"parallel.pp": 4})
    assert file.read_text() == HEAD + "parallel: {tp: &two 2, pp: *two}\n"
