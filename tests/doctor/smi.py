"""An nvidia-smi that says what a test wants: what a healthy H200 said (h200.xml), changed in some places."""

import copy
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path

Changes = dict[str, str]


def log(*gpus: Changes, **top: str) -> str:
    """nvidia-smi -q -x of one GPU for each argument, with the texts at some paths changed; a path that is not there is made."""
    root = xml.parse(Path(__file__).with_name("h200.xml")).getroot()
    healthy = root.find("gpu")
    root.remove(healthy)
    for changes in gpus:
        gpu = copy.deepcopy(healthy)
        for path, text in changes.items():
            element = gpu
            for tag in path.split("/"):
                element = xml.SubElement(element, tag) if (found := element.find(tag)) is None else found
            element.text = text
        root.append(gpu)
    for tag, text in top.items():
        root.find(tag).text = text
    return xml.tostring(root, encoding="unicode")


def fake(text: str, topology: str = "") -> Callable[..., str]:
    return lambda *arguments: topology if arguments[0] == "topo" else text


def matrix(*rows: str) -> str:
    """nvidia-smi topo -m as it prints it, of rows such as "X NV18", with the colours, columns and legend around them."""
    gpus = [f"GPU{i}" for i in range(len(rows))]
    head = "\t\x1b[4m" + "\t".join([*gpus, "NIC0", "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]) + "\x1b[0m"
    lines = []
    for gpu, row in zip(gpus, rows, strict=True):
        lines.append("\t".join([gpu, *(f" {cell} " for cell in row.split()), "PIX", "0-15", "0", "", "N/A"]))
    nic = "NIC0\t" + "PIX\t" * len(rows) + " X "
    return "\n".join([head, *lines, nic, "", "Legend:", "", "  X    = Self", "  NV#  = NVLinks"])
