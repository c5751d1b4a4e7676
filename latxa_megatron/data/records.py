"""A line or row of a source, parsed: a document (`text`, or another field) or a conversation (`messages`, or ShareGPT's form)."""

import hashlib
import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from latxa_megatron.data.readers import Place
from latxa_megatron.errors import LatxaError

Message = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """A document (text is set) or a conversation (messages is set). line: what it was read from; a row's text or messages."""

    place: Place
    line: bytes
    own_id: str | None = None
    text: str | None = None
    messages: list[Message] | None = None

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
    messages = _conversation(value, place)
    if messages is not None:
        return Record(place, line, _id(value), messages=messages)
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
    value = _without_nulls(row)
    for key in ("messages", "conversations"):
        if key in value:
            value[key] = _turns(value[key])
    messages = _conversation(value, place)
    if messages is not None:
        return Record(place, orjson.dumps(messages), _id(value), messages=messages)
    text = _text(value, field, place, "row")
    return Record(place, text.encode(), _id(value), text=text)


def _turns(value: Any) -> Any:
    """A list of messages without nulls, also from the columns that `datasets` makes of a Sequence of objects."""
    if isinstance(value, dict) and all(isinstance(each, list) for each in value.values()):
        value = [dict(zip(value, message, strict=True)) for message in zip_longest(*value.values())]
    if not isinstance(value, list):
        return value
    return [_without_nulls(turn) if isinstance(turn, dict) else turn for turn in value]


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each is not None}


def _conversation(value: dict[str, Any], place: Place) -> list[Message] | None:
    turns = value.get("messages", value.get("conversations"))
    if turns is None:
        return None
    for key in ("tools", "system"):
        if value.get(key):
            raise LatxaError(f"{place}: '{key}' beside the messages would be lost; put it into a system message")
    return _messages(turns, place)


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
        raise LatxaError(f"{place}: the line is not valid JSON: {error}") from None
    if isinstance(value, dict):
        used = {key: value.get(key) for key in ("id", field, "messages", "conversations")}
        try:
            json.dumps(used, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise LatxaError(f"{place}: the text holds half of a surrogate pair, which is no character") from None
    return value


def _id(value: dict[str, Any]) -> str | None:
    return str(value["id"]) if value.get("id") is not None else None


_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def _messages(turns: Any, place: Place) -> list[Message]:
    """Messages as {"role", "content"}, from that form or ShareGPT's {"from", "value"}."""
    if not isinstance(turns, list) or not turns:
        raise LatxaError(f"{place}: a conversation is a list of at least one message")
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise LatxaError(f"{place}: a message is an object with 'role' and 'content'")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise LatxaError(f"{place}: a message needs a string 'role' and a string 'content'")
        if turn.get("tool_calls"):
            raise LatxaError(f"{place}: a message with 'tool_calls' is not supported; write the call into its content")
        messages.append({"role": _SHAREGPT_ROLES.get(role, role), "content": content})
    return messages
