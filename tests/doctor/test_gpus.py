"""Each fault that nvidia-smi can tell of is found, and named with its GPU; a healthy machine has none."""

import pytest

from latxa_megatron.doctor import examine
from latxa_megatron.doctor.finding import look
from latxa_megatron.doctor.gpus import look_at_gpus
from latxa_megatron.doctor.links import look_at_nvlink, topology
from latxa_megatron.doctor.nvidia_smi import machine
from latxa_megatron.errors import LatxaError
from tests.doctor.smi import fake, log, matrix

FAULTS = {
    "an error that ECC did not correct": (
        {"ecc_errors/volatile/dram_uncorrectable": "2", "ecc_errors/volatile/sram_uncorrectable_parity": "1"},
        ("GPU memory errors", "fail", "3 not corrected since the driver started (GPU 1)"),
    ),
    "rows that cannot be replaced": (
        {"remapped_rows/remapped_row_failure": "Yes"},
        ("GPU memory errors", "fail", "memory that cannot be repaired (GPU 1)"),
    ),
    "rows to be replaced": (
        {"remapped_rows/remapped_row_pending": "Yes"},
        ("GPU memory errors", "warn", "a bad row waits for its replacement (GPU 1)"),
    ),
    "ECC off": (
        {"ecc_mode/current_ecc": "Disabled"},
        ("GPU memory errors", "warn", "ECC is off: an error of the memory goes unseen (GPU 1)"),
    ),
    "to be reset": ({"gpu_recovery_action": "Reset"}, ("GPU memory errors", "fail", "the driver asks for: Reset (GPU 1)")),
    "too hot": (
        {"clocks_event_reasons/clocks_event_reason_hw_thermal_slowdown": "Active"},
        ("GPU clocks", "fail", "held down by hw thermal slowdown (GPU 1)"),
    ),
    "too hot, in an older driver's words": (
        {"clocks_throttle_reasons/clocks_throttle_reason_hw_slowdown": "Active"},
        ("GPU clocks", "fail", "held down by hw slowdown (GPU 1)"),
    ),
    "a power cap": (
        {"clocks_event_reasons/clocks_event_reason_sw_power_cap": "Active"},
        ("GPU clocks", "warn", "held down by sw power cap (GPU 1)"),
    ),
    "slow by order": (
        {"applications_clocks/graphics_clock": "1200 MHz"},
        ("GPU clocks", "warn", "set to 1200 of 1980 MHz (GPU 1)"),
    ),
    "nearly too hot": ({"temperature/gpu_temp_tlimit": "3 C"}, ("GPU temperature", "warn", "37 C, 3 below its limit (GPU 1)")),
    "nearly too hot, as an A100 says it": (
        {"temperature/gpu_temp": "88 C", "temperature/gpu_temp_tlimit": "N/A", "temperature/gpu_temp_slow_threshold": "89 C"},
        ("GPU temperature", "warn", "88 C, 1 below its limit (GPU 1)"),
    ),
    "somebody else's": (
        {
            "fb_memory_usage/used": "65536 MiB",
            "processes/process_info/process_name": "python",
            "processes/process_info/pid": "77",
        },
        ("GPU memory in use", "warn", "64.0 GiB by python (pid 77) (GPU 1)"),
    ),
    "in pieces": ({"mig_mode/current_mig": "Enabled"}, ("GPU settings", "fail", "MIG cuts the GPU into pieces (GPU 1)")),
    "no fabric manager": (
        {"fabric/state": "In Progress"},
        ("GPU settings", "fail", "NVSwitch fabric: In Progress, no status (GPU 1)"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_second_gpu_is_found(name):
    changes, expected = FAULTS[name]
    bad = [f for f in look_at_gpus(machine(fake(log({}, changes, {})))) if f.state != "ok"]
    assert [(f.check, f.state, f.found) for f in bad] == [expected]
    assert bad[0].mend


def test_healthy_gpus_have_no_fault():
    found = look_at_gpus(machine(fake(log({}, {}))))
    assert found[0].found == "2 x NVIDIA H200, 140 GiB"
    assert {f.state for f in found} == {"ok"}
    joined = log({"fabric/state": "Completed", "fabric/status": "Success"})
    assert {f.state for f in look_at_gpus(machine(fake(joined)))} == {"ok"}


def test_the_same_fault_of_several_gpus_is_one_line():
    hot = {"clocks_event_reasons/clocks_event_reason_sw_thermal_slowdown": "Active"}
    bad = [f.found for f in look_at_gpus(machine(fake(log(hot, {}, hot)))) if f.state != "ok"]
    assert bad == ["held down by sw thermal slowdown (GPU 0, 2)"]


def test_gpus_of_two_kinds():
    first = look_at_gpus(machine(fake(log({}, {"product_name": "NVIDIA A100", "fb_memory_usage/total": "81920 MiB"}))))[0]
    assert (first.state, first.found) == ("warn", "2 x NVIDIA A100, NVIDIA H200, 80 GiB")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a program nvidia-smi first in the search path."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


def test_a_driver_that_does_not_answer_is_named(installed):
    installed("echo 'NVIDIA-SMI has failed because it couldn'\"'\"'t communicate with the NVIDIA driver.'; exit 9")
    with pytest.raises(LatxaError, match="status 9: NVIDIA-SMI has failed because it couldn't communicate"):
        machine()


def test_what_is_no_xml_is_a_line_and_no_traceback(installed):
    installed("echo '<half'")
    (finding,) = look("GPUs", machine)
    assert (finding.check, finding.state, finding.found.split(":")[0]) == ("GPUs", "fail", "ParseError")


def test_the_installed_program_is_asked(installed, tmp_path):
    (tmp_path / "log.xml").write_text(log({}, driver_version="595.1", cuda_version="13.2"))
    installed(f"[ \"$1 $2\" = '-q -x' ] && cat {tmp_path}/log.xml")
    found = machine()
    assert (found.driver, found.cuda, len(found.gpus)) == ("595.1", "13.2", 1)


def test_a_machine_whose_torch_sees_no_gpu(monkeypatch):
    """As on a GPU node with a CPU build of torch: every check goes on, and the driver's line says it."""
    monkeypatch.setattr("torch.version.cuda", None)
    found = {f.check: f for f in examine._of_this_node(None, None, fake(log({}, {}), matrix("X NV18", "NV18 X")))}
    assert found["CUDA driver"].state == "fail"
    assert found["CUDA driver"].found == "580.159.04, CUDA up to 13.0; torch is a build without CUDA"
    assert found["GPU to GPU"].found == "NVLink between all: NV18"
    assert found["Transformer Engine"].state == "warn"


@pytest.mark.parametrize(
    ("rows", "state", "words"),
    [
        (["X"], None, ""),
        (["X NV18 NV18", "NV18 X NV18", "NV18 NV18 X"], "ok", "NVLink between all: NV18"),
        (
            ["X NV4 SYS SYS", "NV4 X SYS SYS", "SYS SYS X NV4", "SYS SYS NV4 X"],
            "warn",
            "no NVLink between 4 of 6 pairs, as GPU 0 and 2",
        ),
        (["X PHB", "PHB X"], "warn", "no NVLink: PHB"),
    ],
)
def test_how_gpus_are_joined(rows, state, words):
    found = look_at_nvlink(topology(fake("", matrix(*rows))))
    assert [(f.state, f.found) for f in found] == ([(state, words)] if state else [])
