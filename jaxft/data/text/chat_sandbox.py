"""A separate process that renders chat templates: they come with checkpoints and are not trusted.

It imports nothing from jaxft, reads one JSON object from standard input and writes one to
standard output. Jinja's sandbox keeps a template from files and Python objects; this process
limits its time and memory.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # not on Windows: the parent process limits the time
    resource = None  # type: ignore[assignment]

MOST_BYTES = 2 << 30
MOST_CHARACTERS = 4_000_000  # of one conversation


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which marks what a model wrote: text, here."""

    tags = {"generation"}  # noqa: RUF012 - so jinja2 types it

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja set up as in `transformers`, with the functions that templates may call."""

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def as_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = as_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the text of each requested conversation, or the error of the template."""
    texts = []
    try:
        template = environment().from_string(asked["template"])
        for messages, tools in zip(asked["conversations"], asked["tools"], strict=True):
            pieces, length = [], 0
            for piece in template.generate(messages=messages, tools=tools, **asked["variables"]):
                pieces.append(piece)
                length += len(piece)
                if length > MOST_CHARACTERS:
                    return {"error": f"it wrote more than {MOST_CHARACTERS:,} characters"}
            texts.append("".join(pieces))
    except MemoryError:
        return {"error": "it asked for more than 2 GiB of memory"}
    except Exception as error:  # a template may raise whatever Python raises
        reason = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {reason}" if reason else type(error).__name__}
    return {"texts": texts}


def main() -> None:
    """Render the request on standard input."""
    asked = json.load(sys.stdin)
    if resource is not None:
        seconds = asked["seconds"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with contextlib.suppress(ValueError, OSError):  # macOS does not limit a process's memory
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    json.dump(render(asked), sys.stdout)


if __name__ == "__main__":
    main()
