"""A line or row of a source, parsed: a document (`text`, or another field) or a conversation (`messages`, or ShareGPT's form)."""

import hashlib
import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from latxa_megatron.data.messages import Message, Tools, messages_of, tools_of
from latxa_megatron.data.readers import Place
from latxa_megatron.errors import LatxaError


@dataclass(frozen=True)
class Record:
    """A document (text is set) or a conversation (messages is set). line: what it was read from; a row's text or messages."""

    place: Place
    line: bytes
    own_id: str | None = None
    text: str | None = None
    messages: list[Message] | None = None
    tools: Tools | None = None
    """What the assistant of a conversation may call."""

    @property
    def id(self) -> str:
        """The record's own, or a hash of its line."""
        return hashlib.sha256(self.line).hexdigest() if self.own_id is None else self.own_id


@dataclass(frozen=True)
class Skipped:
    """A line that is no record, and why."""

    place: Place
    why: str


def parse(line: bytes, place: Place, field: str = "text") -> Record:
    """The record of a line. Raises LatxaError with file and line for what is none. field: the one that has a document's text."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = _slowly(line, place, field)
    if not isinstance(value, dict):
        raise LatxaError(f"{place}: the line is not a JSON object with '{field}' or 'messages'")
    messages = messages_of(value, place)
    if messages is not None:
        return Record(place, line, _id(value), messages=messages, tools=tools_of(value, place))
    return Record(place, line, _id(value), text=_text(value, field, place, "object"))


def columns(field: str = "text") -> tuple[str, ...]:
    """The columns of a table that parse_row looks at."""
    return (field, "messages", "conversations", "id", "tools", "system")


def parse_row(row: dict[str, Any] | None, place: Place, field: str = "text") -> Record:
    """The record of a table's row, None for one that is not UTF-8. Raises LatxaError with file and row for what is none.

    A null is as if it were not there: a table has every key in every row and every message.
    """
    if row is None:
        raise LatxaError(f"{place}: the row is not UTF-8")
    value = {key: each for key, each in row.items() if each is not None}
    for key in ("messages", "conversations"):
        if key in value:
            value[key] = _without_nulls(_turns(value[key]))
    if "tools" in value:
        value["tools"] = _without_nulls(value["tools"])
    messages = messages_of(value, place)
    if messages is not None:
        return Record(place, orjson.dumps(messages), _id(value), messages=messages, tools=tools_of(value, place))
    text = _text(value, field, place, "row")
    return Record(place, text.encode(), _id(value), text=text)


def _turns(value: Any) -> Any:
    """A list of messages, also from the columns that `datasets` makes of a Sequence of objects."""
    if isinstance(value, dict) and all(isinstance(each, list) for each in value.values()):
        return [dict(zip(value, message, strict=True)) for message in zip_longest(*value.values())]
    return value


def _without_nulls(value: Any) -> Any:
    """A value without the keys that only other rows have."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _text(value: dict[str, Any], field: str, place: Place, what: str) -> str:
    text = value.get(field)
    if not isinstance(text, str):
        raise LatxaError(f"{place}: the {what} has neither a string '{field}' nor a list 'messages'")
    return text


def _slowly(line: bytes, place: Place, field: str) -> Any:
    """A line that orjson refuses: it has NaN or deep nesting, or half of a surrogate pair, or it is no JSON."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        raise LatxaError(f"{place}: the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise no_json(place, error) from None
    if isinstance(value, dict):
        used = {key: value.get(key) for key in ("id", field, "messages", "conversations", "tools", "system")}
        try:
            json.dumps(used, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise LatxaError(f"{place}: the text holds half of a surrogate pair, which is no character") from None
    return value


def no_json(place: Place, error: ValueError | RecursionError) -> LatxaError:
    """Of a line at place. Python's own words count lines inside the line."""
    why = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else error
    return LatxaError(f"{place}: the line is not valid JSON: {why}")


def _id(value: dict[str, Any]) -> str | None:
    return str(value["id"]) if value.get("id") is not None else None
