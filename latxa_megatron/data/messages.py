"""The messages and tools of a conversation in one form, from OpenAI's, transformers' or ShareGPT's.

A message has `role` and `content`; an assistant's can have `tool_calls`, a tool's answer `name` and `tool_call_id`. These and the
tools are as transformers' apply_chat_template takes them: functions, with arguments that are objects and no JSON in a string.
"""

from typing import Any

import orjson

from latxa_megatron.data.readers import Place
from latxa_megatron.errors import LatxaError

Message = dict[str, Any]
Tools = list[dict[str, Any]]

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_OF_AN_ANSWER = ("name", "tool_call_id")


def messages_of(value: dict[str, Any], place: Place) -> list[Message] | None:
    """The messages of a record, a `system` text beside them first; None where it is no conversation.

    Raises LatxaError, naming place, for what is neither form.
    """
    turns = value.get("messages", value.get("conversations"))
    if turns is None:
        return None
    if not isinstance(turns, list) or not turns:
        raise LatxaError(f"{place}: a conversation is a list of at least one message")
    messages = [_message(turn, place) for turn in turns]
    if system := value.get("system"):
        if not isinstance(system, str) or messages[0]["role"] == "system":
            raise LatxaError(f"{place}: 'system' beside the messages is a text, and none of these is a system message then")
        messages.insert(0, {"role": "system", "content": system})
    return messages


def tools_of(value: dict[str, Any], place: Place) -> Tools | None:
    """The functions that the assistant may call, from the list beside the messages, or from JSON of one. Raises LatxaError."""
    tools = _from_json(value.get("tools") or None)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(each, dict) and _name(each) for each in tools):
        raise LatxaError(f"{place}: 'tools' is a list of functions, each with a 'name'")
    return tools


def strings_of(value: Any) -> list[str]:
    """All strings in a JSON value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    return [text for part in value for text in strings_of(part)] if isinstance(value, list) else []


def _message(turn: Any, place: Place) -> Message:
    if not isinstance(turn, dict):
        raise LatxaError(f"{place}: a message is an object with 'role' and 'content'")
    role, content, calls = turn.get("role", turn.get("from")), turn.get("content", turn.get("value")), turn.get("tool_calls")
    if calls and content is None:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise LatxaError(f"{place}: a message needs a string 'role' and a string 'content'")
    message: Message = {"role": _SHAREGPT_ROLES.get(role, role), "content": content}
    if calls:
        if message["role"] != "assistant" or not isinstance(calls, list):
            raise LatxaError(f"{place}: 'tool_calls' are a list, in a message of the assistant")
        message["tool_calls"] = [_call(call, place) for call in calls]
    if message["role"] in ("tool", "ipython"):
        message |= {key: turn[key] for key in _OF_AN_ANSWER if isinstance(turn.get(key), str)}
    return message


def _call(call: Any, place: Place) -> dict[str, Any]:
    name = _name(call) if isinstance(call, dict) else None
    arguments = _from_json(call.get("function", call).get("arguments") or {}) if name else None
    if not isinstance(arguments, dict):
        raise LatxaError(f"{place}: a tool call is a function's 'name' and its 'arguments', an object or JSON of one")
    own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def _name(function: dict[str, Any]) -> str | None:
    """That of {"name": ...} or {"function": {"name": ...}}."""
    inner = function.get("function", function)
    name = inner.get("name") if isinstance(inner, dict) else None
    return name if isinstance(name, str) and name else None


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value
