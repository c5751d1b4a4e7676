"""The health of this machine's GPUs: memory errors, what holds their clocks down, heat, who else uses them."""

import xml.etree.ElementTree as xml
from collections.abc import Callable

from latxa_megatron.doctor.finding import Finding, State, worst
from latxa_megatron.doctor.nvidia_smi import Machine, number, said

_OTHERS_MIB = 1024
"""Memory of others that is worth a word. A process that has a CUDA context and does nothing has some 500 MiB."""

_HARMLESS = {"gpu_idle", "applications_clocks_setting", "display_clocks_setting", "sync_boost"}
"""Reasons of a lower clock that are no trouble of the GPU's; what an administrator set stands in the line of clocks."""

_REPLACE = "take the node out of the job (sbatch --exclude) and tell the administrators: nvidia-smi -q -d ECC,ROW_REMAPPER"
_RESET = "ask the administrators to reset the GPU (nvidia-smi -r), or take another node"


def look_at_gpus(machine: Machine) -> list[Finding]:
    """One line for each kind of trouble that some GPU has, and one for what none has."""
    if not machine.gpus:
        return [
            Finding("GPUs", "fail", "nvidia-smi lists none", "ask the scheduler for GPUs, or start the container with --gpus all")
        ]
    names = sorted({said(gpu, "product_name") for gpu in machine.gpus})
    total = min(number(gpu, "fb_memory_usage/total") or 0 for gpu in machine.gpus)
    findings = [Finding("GPUs", "ok", f"{len(machine.gpus)} x {', '.join(names)}, {total / 1024:.0f} GiB")]
    if len(names) > 1:
        mend = "the slowest sets the pace of all; ask for nodes of one kind (sbatch --constraint)"
        findings[0] = Finding("GPUs", "warn", findings[0].found, mend)
    kinds: list[tuple[str, Callable[[xml.Element], Finding | None]]] = [
        ("GPU memory errors", _errors),
        ("GPU clocks", _clocks),
        ("GPU temperature", _heat),
        ("GPU memory in use", _others),
        ("GPU settings", _settings),
    ]
    for check, examine in kinds:
        found = [(i, examine(gpu)) for i, gpu in enumerate(machine.gpus)]
        findings += _folded(check, [(i, one) for i, one in found if one is not None])
    return findings


def _folded(check: str, found: list[tuple[int, Finding]]) -> list[Finding]:
    """GPUs of which the same is to be said share a line; those that are well share one without details of each."""
    bad = [(i, one) for i, one in found if one.state != "ok"]
    same: dict[Finding, list[int]] = {}
    for i, one in bad or found:
        same.setdefault(one, []).append(i)
    if worst(same) == "ok" and len(same) > 1:
        return [Finding(check, "ok", "; ".join(sorted({one.found for one in same})))]
    return [
        Finding(check, one.state, f"{one.found} (GPU {', '.join(map(str, gpus))})" if one.state != "ok" else one.found, one.mend)
        for one, gpus in same.items()
    ]


def _errors(gpu: xml.Element) -> Finding | None:
    """Errors since the driver started that ECC could not correct, and rows of memory that wait for their replacement."""
    check = "GPU memory errors"
    if said(gpu, "ecc_mode/current_ecc") != "Enabled":
        return Finding(check, "warn", "ECC is off: an error of the memory goes unseen", "nvidia-smi -e 1 as root, and a restart")
    count = sum(int(element.text or 0) for element in gpu.iterfind("ecc_errors/volatile/*") if _uncorrected(element))
    if said(gpu, "remapped_rows/remapped_row_failure") == "Yes" or said(gpu, "ecc_errors/unrepairable_memory") == "Yes":
        return Finding(check, "fail", "memory that cannot be repaired", _REPLACE)
    if said(gpu, "gpu_recovery_action") not in ("", "None"):
        return Finding(check, "fail", f"the driver asks for: {said(gpu, 'gpu_recovery_action')}", _RESET)
    if count:
        return Finding(check, "fail", f"{count} not corrected since the driver started", _REPLACE)
    if said(gpu, "remapped_rows/remapped_row_pending") == "Yes" or said(gpu, "retired_pages/pending_retirement") == "Yes":
        return Finding(check, "warn", "a bad row waits for its replacement", _RESET)
    return Finding(check, "ok", "none that ECC did not correct")


def _uncorrected(element: xml.Element) -> bool:
    return "uncorrectable" in element.tag and (element.text or "").strip().isdigit()


def _clocks(gpu: xml.Element) -> Finding | None:
    """What holds the clocks down now. Newer drivers call the reasons events, older ones throttling."""
    check = "GPU clocks"
    reasons = [*gpu.iterfind("clocks_event_reasons/*"), *gpu.iterfind("clocks_throttle_reasons/*")]
    active = {_reason(one.tag) for one in reasons if (one.text or "").strip() == "Active"} - _HARMLESS
    most, set_to = number(gpu, "max_clocks/sm_clock"), number(gpu, "applications_clocks/graphics_clock")
    clocks = f"up to {set_to or most:.0f} MHz" if set_to or most else "not known"
    if active:
        words = ", ".join(one.replace("_", " ") for one in sorted(active))
        state: State = "warn" if active == {"sw_power_cap"} else "fail"
        mend = "a power cap under load is usual; look again when the GPU is idle" if state == "warn" else _cool(active)
        return Finding(check, state, f"held down by {words}", mend)
    if most and set_to and set_to < 0.95 * most:
        mend = "nvidia-smi -rac takes the limit away, where the site allows it"
        return Finding(check, "warn", f"set to {set_to:.0f} of {most:.0f} MHz", mend)
    return Finding(check, "ok", clocks)


def _reason(tag: str) -> str:
    return tag.removeprefix("clocks_event_reason_").removeprefix("clocks_throttle_reason_")


def _cool(active: set[str]) -> str:
    what = "cooling" if any("thermal" in one for one in active) else "power supply"
    return f"take the node out of the job (sbatch --exclude) and tell the administrators: its {what} fails"


def _heat(gpu: xml.Element) -> Finding | None:
    """Degrees up to where the GPU slows itself down: newer ones say what is left, older ones where that is."""
    check, now, left = "GPU temperature", number(gpu, "temperature/gpu_temp"), number(gpu, "temperature/gpu_temp_tlimit")
    slow = number(gpu, "temperature/gpu_temp_slow_threshold")
    if now is None:
        return None
    if left is None and slow is not None:
        left = slow - now
    if left is not None and left < 5:
        mend = "take another node and tell the administrators; at the limit the GPU slows down"
        return Finding(check, "warn", f"{now:.0f} C, {left:.0f} below its limit", mend)
    return Finding(check, "ok", "not hot" if left is None else "not hot: more than 5 C below the limit")


def _others(gpu: xml.Element) -> Finding | None:
    check, used, total = "GPU memory in use", number(gpu, "fb_memory_usage/used"), number(gpu, "fb_memory_usage/total")
    if used is None or total is None:
        return None
    if used <= _OTHERS_MIB:
        return Finding(check, "ok", "none to speak of")
    users = [f"{said(one, 'process_name')} (pid {said(one, 'pid')})" for one in gpu.iterfind("processes/process_info")]
    who = ", ".join(users) or "processes that cannot be seen from here"
    return Finding(check, "warn", f"{used / 1024:.1f} GiB by {who}", "end them, or take a GPU that nobody else has")


def _settings(gpu: xml.Element) -> Finding | None:
    """What an administrator left in a state in which training cannot use the GPU whole."""
    check = "GPU settings"
    if said(gpu, "mig_mode/current_mig") == "Enabled":
        return Finding(check, "fail", "MIG cuts the GPU into pieces", "nvidia-smi -mig 0 as root, or ask for whole GPUs")
    if said(gpu, "compute_mode") == "Prohibited":
        return Finding(check, "fail", "compute mode is Prohibited", "nvidia-smi -c 0 as root")
    state = said(gpu, "fabric/state")
    if (state and state != "Completed") or said(gpu, "fabric/status") not in ("", "Success"):
        found = f"NVSwitch fabric: {state}, {said(gpu, 'fabric/status') or 'no status'}"
        return Finding(check, "fail", found, "start nvidia-fabricmanager of the driver's own version, or take another node")
    return Finding(check, "ok", "whole GPUs, and free to compute")
