"""Runs a chat template on contents that note what it does with them: a template that looks at none renders all of them alike.

transformers gives templates plain strings, so the template runs here in an environment of the same kind. Whether it renders the
same there is for the caller to see.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from latxa_megatron.data.tokenizer import Tokenizer


class Watched(str):
    """A content that notes every use but being written, joined to other text, and stripped of the spaces around it.

    What jinja makes of it in a macro or a set block is a plain string, of which nothing is seen any more.
    """

    looks: set[str]

    def __new__(cls, value: str, looks: set[str]) -> "Watched":
        found = super().__new__(cls, value)
        found.looks = looks
        return found

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> "Watched":
        return Watched(str.__add__(self, other), self.looks)

    def __radd__(self, other: str) -> "Watched":
        return Watched(str.__add__(other, self), self.looks)

    def __bool__(self) -> bool:
        self.looks.add("__bool__")
        return str.__len__(self) > 0


def _noting(name: str) -> Callable[..., Any]:
    def method(self: Watched, *args: Any, **options: Any) -> Any:
        if name not in _STRIPS or any(a is not None for a in args) or options:
            self.looks.add(name)
            return getattr(str, name)(self, *args, **options)
        return Watched(getattr(str, name)(self), self.looks)

    return method


_STRIPS = ("strip", "lstrip", "rstrip")
_HARMLESS = {"__class__", "__getattribute__", "__init__", "__new__", "__doc__", "__add__", "__str__", "__setattr__"}
for _name in set(dir(str)) - _HARMLESS - {"__init_subclass__", "__subclasshook__", "maketrans"}:
    setattr(Watched, _name, _noting(_name))


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, transformers' marks of what an assistant says: what they hold is written."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render_watched(tokenizer: Tokenizer, roles: Sequence[str], contents: Sequence[str]) -> tuple[str, set[str]]:
    """The text that the template makes of these messages, and the names of the string methods that it used on contents.

    Raises whatever the template does.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _refuse
    looks: set[str] = set()
    text = environment.from_string(tokenizer.template_program).render(
        **tokenizer.template_variables,
        messages=[{"role": role, "content": Watched(c, looks)} for role, c in zip(roles, contents, strict=True)],
        tools=None,
        documents=None,
        add_generation_prompt=False,
    )
    return text, looks


def _refuse(message: str) -> None:
    raise ValueError(message)
