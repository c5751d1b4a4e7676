"""How GPUs and nodes are joined: NVLink or PCIe between the GPUs of a node, InfiniBand or Ethernet between nodes."""

import re
from pathlib import Path

from latxa_megatron.doctor.finding import Finding
from latxa_megatron.doctor.nvidia_smi import Run, nvidia_smi

INFINIBAND = Path("/sys/class/infiniband")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def topology(run: Run = nvidia_smi) -> list[list[str]]:
    """nvidia-smi's matrix: how each GPU is joined to each, as NV18 (18 NVLinks) or PIX, PXB, PHB, NODE, SYS (over PCIe)."""
    lines = _COLOURS.sub("", run("topo", "-m")).splitlines()
    rows = [line.split("\t") for line in lines if re.match(r"GPU\d+\s", line)]
    return [[cell.strip() for cell in row[1 : len(rows) + 1]] for row in rows]


def nvlinks(kind: str) -> int:
    """How many NVLinks a cell of the matrix stands for; 0 for PCIe."""
    return int(kind[2:]) if re.fullmatch(r"NV\d+", kind) else 0


def look_at_nvlink(matrix: list[list[str]]) -> list[Finding]:
    """How the GPUs of this node are joined; nothing for one GPU."""
    pairs = {(i, j): kind for i, row in enumerate(matrix) for j, kind in enumerate(row) if i < j}
    if not pairs:
        return []
    check, without = "GPU to GPU", [pair for pair, kind in pairs.items() if not nvlinks(kind)]
    kinds = ", ".join(sorted(set(pairs.values())))
    if not without:
        return [Finding(check, "ok", f"NVLink between all: {kinds}")]
    if len(without) == len(pairs):
        mend = "keep parallel.tp at 1, or take GPUs with NVLink: over PCIe tensor parallelism waits for its messages"
        return [Finding(check, "warn", f"no NVLink: {kinds}", mend)]
    first = " and ".join(map(str, without[0]))
    mend = "keep parallel.tp within the GPUs that NVLink joins: nvidia-smi topo -m shows them"
    return [Finding(check, "warn", f"no NVLink between {len(without)} of {len(pairs)} pairs, as GPU {first}", mend)]


def look_at_infiniband(nodes: int, root: Path = INFINIBAND) -> list[Finding]:
    """The ports that lead to other nodes. Without one a single node does well, and several are slow."""
    check, ports = "InfiniBand", _ports(root)
    if not ports:
        if nodes == 1:
            return [Finding(check, "ok", "none; one node needs none")]
        mend = "NCCL will use TCP; ask for nodes with InfiniBand, and give the container /dev/infiniband"
        return [Finding(check, "warn", "none", mend)]
    active = [what for state, what in ports.values() if state == "ACTIVE"]
    kinds = ", ".join(f"{active.count(kind)} x {kind}" for kind in sorted(set(active)))
    down = [name for name, (state, _) in ports.items() if state != "ACTIVE"]
    if not active:
        found = f"no active port: {', '.join(down)}"
        if nodes == 1:
            return [Finding(check, "ok", f"{found}; one node needs none")]
        return [Finding(check, "fail", found, "ask the administrators to look at the cables and the subnet manager")]
    if len(set(active)) > 1 and nodes > 1:
        mend = "if NCCL is to use the fast ones alone: NCCL_IB_HCA in the job's environment"
        return [Finding(check, "warn", f"ports of several kinds: {kinds}", mend)]
    return [Finding(check, "ok", kinds + (f"; not in use: {', '.join(down)}" if down else ""))]


def port_rate(root: Path = INFINIBAND) -> float:
    """GB/s of the fastest active port; 0 where there is none."""
    active = [what for state, what in _ports(root).values() if state == "ACTIVE"]
    return max((float(what.split()[1]) / 8 for what in active), default=0.0)


def _ports(root: Path) -> dict[str, tuple[str, str]]:
    """Of each port its state, as ACTIVE, and its kind and rate, as "InfiniBand 400 Gb/s"."""
    ports = {}
    for port in sorted(root.glob("*/ports/*")):
        state = _line(port / "state").partition(": ")[2]
        rate = re.match(r"[\d.]+", _line(port / "rate"))
        kind = "RoCE" if _line(port / "link_layer") == "Ethernet" else "InfiniBand"
        ports[f"{port.parent.parent.name}:{port.name}"] = (state, f"{kind} {float(rate[0]) if rate else 0:g} Gb/s")
    return ports


def _line(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip()
