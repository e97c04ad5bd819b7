"""What msgspec could not read or would not accept, as our own errors with JSON pointers (RFC 6901)."""

from __future__ import annotations

import re

import msgspec

from batchline.errors import BatchlineError, Fault, InvalidRequestError, MalformedError

_AT = re.compile(r" - at `\$(.*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]|(\[\.\.\.\])")
_FIELD = re.compile(r"(?:missing required|contains unknown) field `(.*)`$", re.DOTALL)


def from_decoding(error: Exception) -> BatchlineError:
    """What msgspec could not read or would not accept, with a pointer made from its `$.a[0].b`."""
    text = str(error)
    if isinstance(error, RecursionError):
        return MalformedError("The body is nested too deeply.", faults=(Fault("", "is nested too deeply"),))
    if not isinstance(error, msgspec.ValidationError):
        told = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else text
        return MalformedError("The body is not JSON that can be read.", faults=(Fault("", told),))
    found = _AT.search(text)
    steps = _STEP.finditer(found.group(1)) if found else ()
    pointer = ""
    for step in steps:
        if step.group(3):
            break
        pointer += "/" + (escape(step.group(1)) if step.group(1) is not None else step.group(2))
    told = text[: found.start()] if found else text
    field = _FIELD.search(told)
    if field:
        pointer += "/" + escape(field.group(1))
    return InvalidRequestError("The body does not fit.", faults=(Fault(pointer, told),))


def escape(token: str) -> str:
    """A reference token of a JSON pointer (RFC 6901)."""
    return token.replace("~", "~0").replace("/", "~1")
