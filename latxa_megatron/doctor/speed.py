"""What the measured bandwidth says, held against the links that are there."""

from latxa_megatron.doctor.bandwidth import Link, Measured
from latxa_megatron.doctor.finding import Finding

_NVLINK = 25.0
"""GB/s of one NVLink in one direction, generations 2 to 4 (V100, A100, H100); the fifth has twice that."""


def look_at_bandwidth(measured: Measured, nvlinks: int, port: float) -> list[Finding]:
    """Collectives at their largest size, and the slowest pairs in and between nodes.

    nvlinks: the fewest between two GPUs of this node; port: GB/s of the fastest port to other nodes. A pair that reaches less
    than half of what its link can do is a warning: most often NCCL found another way than that link.
    """
    if len(measured.nodes) < 2:
        return [Finding("bandwidth", "ok", "one process: there is nothing to send")]
    findings = []
    for name in dict.fromkeys(timed.operation for timed in measured.collectives):
        timed = [one for one in measured.collectives if one.operation == name]
        large, small = timed[-1], timed[0]
        found = (
            f"{large.busbw_gb_s:.3g} GB/s bus bandwidth at {large.bytes >> 20} MiB, {small.seconds * 1e6:.0f} us for "
            f"{small.bytes} bytes; {len(measured.nodes)} processes, {measured.backend}"
        )
        findings.append(Finding(name.replace("_", "-"), "ok", found))
    gpus = measured.device != "cpu"
    inside = [link for link in measured.links if _same_node(link, measured.nodes)]
    between = [link for link in measured.links if not _same_node(link, measured.nodes)]
    mend = "unset NCCL_P2P_DISABLE, and look at the links: nvidia-smi nvlink --status"
    findings += _slowest("p2p in a node", inside, nvlinks * _NVLINK if gpus else 0, mend)
    mend = "NCCL_DEBUG=INFO says which network it took; see NCCL_IB_HCA, NCCL_SOCKET_IFNAME and NCCL_IB_DISABLE"
    return findings + _slowest("p2p between nodes", between, port if gpus else 0, mend)


def _same_node(link: Link, nodes: list[str]) -> bool:
    return nodes[link.ranks[0]] == nodes[link.ranks[1]]


def _slowest(check: str, links: list[Link], able: float, mend: str) -> list[Finding]:
    if not links:
        return []
    slow = min(links, key=lambda link: link.gb_s)
    ranks = " and ".join(map(str, slow.ranks))
    found = f"{slow.gb_s:.3g} GB/s each way at {slow.bytes >> 20} MiB between ranks {ranks}, the slowest of {len(links)}"
    if slow.gb_s < able / 2:
        return [Finding(check, "warn", f"{found}; the link can do {able:.0f}", mend)]
    return [Finding(check, "ok", found)]
