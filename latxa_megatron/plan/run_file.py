"""Values of a run file changed in place: its comments, its order and all other lines stay as they are."""

import tempfile
from pathlib import Path
from typing import Any

import yaml

from latxa_megatron.config import load_run
from latxa_megatron.errors import LatxaError
from latxa_megatron.files import write_atomically
from latxa_megatron.plan.layouts import changed


def write_layout(path: Path, values: dict[str, Any]) -> None:
    """Set the dotted keys of a layout, as {"parallel.tp": 4}, in a run file.

    A key that stands there gets the new value; another one is added to its section, which is added at the end where there is
    none. Raises LatxaError, and changes nothing, for a file that cannot be changed so, as one with anchors.
    """
    wanted = changed(load_run(path), **{key.partition(".")[2]: value for key, value in values.items()})
    text = path.read_text(encoding="utf-8")
    for key, value in values.items():
        section, _, name = key.partition(".")
        text = _with(text, section, name, yaml_word(value))
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory) / path.name
        written.write_text(text, encoding="utf-8")
        try:
            same = load_run(written) == wanted
        except LatxaError:
            same = False
    if not same:
        says = " ".join(f"{key}={yaml_word(value)}" for key, value in values.items())
        raise LatxaError(f"{path}: is written in a way that --write cannot change; set {says} in it yourself")
    write_atomically(path, text)


def yaml_word(value: Any) -> str:
    """A value of a layout in YAML, without line breaks."""
    return "null" if value is None else str(value)


def _with(text: str, section: str, key: str, value: str) -> str:
    root = yaml.compose(text, yaml.SafeLoader)
    found = _entry(root, section)
    if found is None:
        return f"{text}{'' if text.endswith(chr(10)) else chr(10)}{section}: {{{key}: {value}}}\n"
    node = found[1]
    if not node.value:
        return _replaced(text, *found, f"{{{key}: {value}}}")
    if there := _entry(node, key):
        return _replaced(text, *there, value)
    end = _end(node.value[-1][1])
    if isinstance(node, yaml.CollectionNode) and node.flow_style:
        return f"{text[:end]}, {key}: {value}{text[end:]}"
    line_end = (text + "\n").index("\n", end)
    return f"{text[:line_end]}\n{' ' * node.start_mark.column}{key}: {value}{text[line_end:]}"


def _replaced(text: str, key: yaml.Node, old: yaml.Node, new: str) -> str:
    return f"{text[: key.end_mark.index]}: {new}{text[_end(old) :]}"


def _entry(node: yaml.Node | None, key: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((name, value) for name, value in pairs if name.value == key), None)


def _end(node: yaml.Node) -> int:
    """Where a node's text ends: of what is in blocks where its last word does, since its own mark is after the lines below it."""
    if isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    end: int = node.end_mark.index
    return end
