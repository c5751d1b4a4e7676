"""Conversations to tokens and trained spans: the assistant turns, with their end-of-turn token, and nothing else.

Most templates (Llama's among them) do not mark what the assistant says. So the template is run on every prefix of the
conversation: an assistant turn is what its rendering adds to the generation prompt before it, up to and including the first
control token after its content; with tool calls, which a template may write between control tokens of their own, the last one.
A template for which that does not hold (one that rewrites earlier turns, or has no end of turn) is refused. The text is then cut
at the control tokens that the *template* wrote; those in the content stay text, unless the tokenizer's special_tokens says
otherwise.

This is the exact way, one conversation at a time and two renderings for each answer. conversations.py gives the same tokens
many times faster, and comes back here for what it cannot do.
"""

from dataclasses import dataclass
from typing import Any

from latxa_megatron.data.messages import Message, Tools, strings_of
from latxa_megatron.data.tokenizer import Tokenizer
from latxa_megatron.errors import LatxaError

_ROLES = ("system", "user", "assistant", "tool", "ipython")


@dataclass(frozen=True)
class Tokens:
    """Token ids of one document or conversation, and the spans [start, end) of them that are trained."""

    ids: list[int]
    spans: list[tuple[int, int]]


def check_template(tokenizer: Tokenizer) -> None:
    """Raise LatxaError unless the tokenizer has a chat template, and gives what it renders the ids that a server gives it."""
    if not tokenizer.chat_template:
        raise LatxaError(
            f"{tokenizer.directory}: the tokenizer has no chat template, so conversations cannot be rendered; "
            "use the directory of the instruct model's tokenizer or add a chat_template.jinja and tokenizer.json"
        )

    messages = [{"role": "user", "content": "Zer da hau?"}, {"role": "assistant", "content": "Etxe bat."}]
    ids = encode_conversation(tokenizer, messages, tokenizer.directory).ids
    served = tokenizer.encode_rendered(tokenizer.render_chat(messages))
    if ids[len(ids) - len(served) :] != served:
        raise LatxaError(
            f"{tokenizer.directory}: its control tokens change how the text beside them is tokenized, which is not supported"
        )


def encode_conversation(tokenizer: Tokenizer, messages: list[Message], place: object, tools: Tools | None = None) -> Tokens:
    """Tokens of a conversation as the chat template renders it, with one BOS where the model wants one.

    place is named in errors. Raises LatxaError for a conversation that cannot be rendered or has no assistant turn, for a
    template that leaves out tools or tool calls, and for one in which assistant turns cannot be told.
    """
    _check_roles(messages, place)
    for i, message in enumerate(messages):
        for text in strings_of(message):
            tokenizer.check_text(text, f"{place}: message {i + 1}")
    for text in strings_of(tools):
        tokenizer.check_text(text, f"{place}: tools")
    mark = _absent_character([messages, tools])
    if tokenizer.special_tokens != "encode":
        messages, tools = _marked(tokenizer, [messages, tools], mark)
    render = _Rendered(tokenizer, tools, place)
    text = render(messages)
    if tools and text == _Rendered(tokenizer, None, place)(messages):
        raise LatxaError(f"{place}: the chat template leaves out the 'tools' beside the messages; put them into a system message")
    trained = [_assistant_span(render, messages, i, text) for i, m in enumerate(messages) if m["role"] == "assistant"]
    ids, flags = _tokenize(tokenizer, text, trained, mark)
    if tokenizer.bos_id is not None and ids[0] != tokenizer.bos_id:
        ids, flags = [tokenizer.bos_id, *ids], [False, *flags]
    return Tokens(ids, _spans(flags))


def _check_roles(messages: list[dict[str, Any]], place: object) -> None:
    previous = ""
    for i, message in enumerate(messages):
        role = message["role"]
        if role not in _ROLES:
            raise LatxaError(f"{place}: message {i + 1} has the role '{role}'; there are {', '.join(_ROLES)}")
        if role == "system" and i > 0:
            raise LatxaError(f"{place}: message {i + 1} is a system message; only the first can be")
        if role == "assistant" and previous in ("", "system", "assistant"):
            raise LatxaError(f"{place}: message {i + 1} is an assistant turn that answers no user turn")
        if role == "assistant" and not (message["content"].strip() or message.get("tool_calls")):
            raise LatxaError(f"{place}: message {i + 1} is an assistant turn that says nothing")
        if role == "user" and previous == "user":
            raise LatxaError(f"{place}: message {i + 1} is a user turn after a user turn")
        previous = role
    if not any(m["role"] == "assistant" for m in messages):
        raise LatxaError(f"{place}: the conversation has no assistant turn, so nothing of it would be trained")


def _marked(tokenizer: Tokenizer, value: Any, mark: str) -> Any:
    """A JSON value with a mark inside each control token that its strings spell, so that none is taken for the template's own."""
    if isinstance(value, str):
        return tokenizer.control_pattern.sub(lambda t: t[0][0] + mark + t[0][1:], value)
    if isinstance(value, dict):
        return {_marked(tokenizer, key, mark): _marked(tokenizer, each, mark) for key, each in value.items()}
    return [_marked(tokenizer, each, mark) for each in value] if isinstance(value, list) else value


def _absent_character(value: Any) -> str:
    """A private-use character that no string of a JSON value contains."""
    used = set().union(*strings_of(value))
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)


@dataclass(frozen=True)
class _Rendered:
    """What the chat template makes of messages. Raises LatxaError where it refuses them."""

    tokenizer: Tokenizer
    tools: Tools | None
    place: object

    def __call__(self, messages: list[Message], *, prompt: bool = False) -> str:
        try:
            return self.tokenizer.render_chat(messages, self.tools, add_generation_prompt=prompt)
        except Exception as error:  # a template is a program of someone else's: it may raise anything
            raise LatxaError(f"{self.place}: the chat template refuses the conversation: {error}") from None


def _assistant_span(render: _Rendered, messages: list[Message], turn: int, text: str) -> tuple[int, int]:
    """Characters [start, end) of an assistant turn in the rendered conversation, end-of-turn token included."""
    before = render(messages[:turn], prompt=True)
    after = render(messages[: turn + 1])
    directory, place = render.tokenizer.directory, render.place
    if not (text.startswith(after) and after.startswith(before)):
        raise LatxaError(
            f"{directory}: the chat template renders a turn differently once others follow, "
            f"so assistant turns cannot be told (at {place})"
        )
    rest = after[len(before) :]
    find_end = _end_after_calls if messages[turn].get("tool_calls") else _end_after_content
    end = find_end(render.tokenizer, messages[turn], rest, place)
    if end is None:
        raise LatxaError(f"{directory}: the chat template has no end-of-turn token after an assistant turn")
    return len(before), len(before) + end


def _end_after_content(tokenizer: Tokenizer, message: Message, rest: str, place: object) -> int | None:
    """Where a turn of plain content ends in what its rendering begins with; None where no control token ends it."""
    content = message["content"]
    shown = next((c for c in (content, content.strip(), content.lstrip(), content.rstrip()) if rest.startswith(c)), None)
    if shown is None:
        raise LatxaError(
            f"{tokenizer.directory}: the chat template changes what the assistant says, "
            f"so assistant turns cannot be told (at {place})"
        )
    end = tokenizer.control_pattern.search(rest, len(shown))
    return end.end() if end else None


def _end_after_calls(tokenizer: Tokenizer, message: Message, rest: str, place: object) -> int | None:
    """The same of a turn with tool calls, which are nowhere but in this rendering."""
    for what in (message["content"].strip(), *(call["function"]["name"] for call in message["tool_calls"])):
        if what not in rest:
            raise LatxaError(
                f"{place}: the chat template leaves out '{what[:40]}' of an assistant turn with tool calls; "
                "say it in turns that the template writes whole"
            )
    ends = [found.end() for found in tokenizer.control_pattern.finditer(rest)]
    return ends[-1] if ends and not rest[ends[-1] :].strip() else None


def _tokenize(tokenizer: Tokenizer, text: str, trained: list[tuple[int, int]], mark: str) -> tuple[list[int], list[bool]]:
    """Ids of the rendered text, and for each whether it begins inside a trained range of characters."""
    ids: list[int] = []
    flags: list[bool] = []
    at = 0
    for piece in tokenizer.control_pattern.split(text):
        if piece in tokenizer.control_tokens:
            ids.append(tokenizer.control_tokens[piece])
            flags.append(_inside(at, trained))
        elif piece:
            kept = [at + i for i, c in enumerate(piece) if c != mark]  # place in `text` of each character encoded
            piece_ids, offsets = tokenizer.encode_with_offsets(piece.replace(mark, ""))
            ids += piece_ids
            flags += [_inside(kept[min(start, len(kept) - 1)], trained) for start, _ in offsets]
        at += len(piece)
    return ids, flags


def _inside(at: int, ranges: list[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in ranges)


def _spans(flags: list[bool]) -> list[tuple[int, int]]:
    """Runs of True as [start, end)."""
    edges = [i for i in range(len(flags) + 1) if (i < len(flags) and flags[i]) != (i > 0 and flags[i - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))
