"""Messages as bytes: written as no program of this repository writes them, so that what was parsed and written again shows."""

import itertools
import json

_numbers = itertools.count(1)
_NOTE = b'"x-note" :[1.0, 1E2,"\\u00e9\\/", {} ]'


def identifier(sender):
    """An id that no message had: a number or a string."""
    number = next(_numbers)
    return number if number % 2 else f"{sender}-{number}"


def message(identifier=None, **members):
    """A message of these members, in an order and with blanks that change from one to the next; `None` is left out."""
    number = next(_numbers)
    if identifier is not None:
        members["id"] = identifier
    parts = [b'"jsonrpc": "2.0"', _NOTE]
    for name, value in members.items():
        if value is not None:
            text = json.dumps(value, separators=(" ,", " : "), ensure_ascii=bool(number % 2))
            parts.append(f'"{name}" :{text}'.encode())
    turn = number % len(parts)
    return b"{ " + b" , ".join(parts[turn:] + parts[:turn]) + b"}"


def error_of(body):
    """The code, the message and the denial of an error, or of a tool result that is one."""
    message = json.loads(body)
    if error := message.get("error"):
        return error.get("code"), error.get("message"), (error.get("data") or {}).get("toolweir.dev/denial") or {}
    result = message.get("result") or {}
    if result.get("isError"):
        words = "".join(block.get("text", "") for block in result.get("content") or [])
        return "tool result", words, (result.get("_meta") or {}).get("toolweir.dev/denial") or {}
    return None, None, {}
