"""Conversations as text, by the checkpoint's own chat template."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.storage.json_files import read_json_object

Messages = Sequence[Mapping[str, Any]]  # each with `role` and `content`
ToolList = Sequence[Mapping[str, Any]]  # the JSON schema of each

SANDBOX = Path(__file__).with_name("chat_sandbox.py")
# Limits of a template: CPU seconds, more for each conversation; and the factor by which the wall
# clock may exceed them on a busy machine.
SECONDS, SECONDS_EACH, BUSY = 5.0, 0.02, 20
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")

UNUSED = {"documents": None}  # templates test whether it is set


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's Jinja template for conversations.

    Args:
        folder: the checkpoint's.
        text: the Jinja template.
        tokens: the special tokens that it may name, such as `bos_token`.
    """

    folder: Path
    text: str
    tokens: Mapping[str, str]

    def render(
        self,
        conversations: Sequence[Messages],
        tools: Sequence[ToolList | None] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> list[str]:
        """Return the text of each conversation, special tokens included.

        The template runs in a separate process, which is killed if it takes too long; one process
        serves all conversations.

        Args:
            conversations: the messages of each.
            tools: of each conversation those that the assistant may call; None for none.
            add_generation_prompt: end where the assistant is to go on.

        Raises:
            UserError: the template is invalid, rejects a conversation, or does not terminate.
        """
        asked: dict[str, Any] = {
            "template": self.text,
            "conversations": [[*map(_without_nulls, one)] for one in conversations],
            "tools": [one or None for one in tools or [None] * len(conversations)],
            "variables": {**self.tokens, **UNUSED, "add_generation_prompt": add_generation_prompt},
            "seconds": math.ceil(SECONDS + SECONDS_EACH * len(conversations)),
        }
        endless = f"it did not finish in {asked['seconds']} seconds"
        try:
            # -P: keep its folder off the import path, for it holds names such as `text`.
            done = subprocess.run(
                [sys.executable, "-P", str(SANDBOX)],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=BUSY * asked["seconds"],
            )
        except subprocess.TimeoutExpired:
            raise self._refused(endless) from None
        if done.returncode < 0 and -done.returncode == getattr(signal, "SIGXCPU", None):
            raise self._refused(endless)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            last = (done.stderr.strip() or "no output").splitlines()[-1]
            raise self._refused(f"the process that ran it ended with {last}") from None
        if "error" in answer:
            raise self._refused(answer["error"])
        return answer["texts"]

    def _refused(self, why: str) -> UserError:
        return UserError(f"The chat template of '{self.folder}' failed: {why.removesuffix('.')}.")


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without keys that are null, but for its content.

    Templates ask whether a key is there, and a Parquet file has every row's keys in every row.
    """
    return {name: one for name, one in message.items() if one is not None or name == "content"}


def load_chat_template(folder: str | Path) -> ChatTemplate | None:
    """Return the chat template of a checkpoint's folder; None where it has none.

    It is `chat_template.jinja`, else what chat_template.json or tokenizer_config.json has under
    `chat_template`: a text, or a list of named ones, of which `default` is taken.

    Raises:
        UserError: a file has unexpected content.
    """
    folder = Path(folder)
    config = _read(folder / "tokenizer_config.json")
    file = folder / "chat_template.jinja"
    stored = _read(folder / "chat_template.json") or config  # of processors of images and texts
    text = _template_in(file) if file.is_file() else stored.get("chat_template")
    if isinstance(text, list):
        named = [one for one in text if isinstance(one, dict) and one.get("name") == "default"]
        text = named[-1].get("template") if named else None
    if not text:
        return None
    if not isinstance(text, str):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is not text.")
    fields = _read(folder / "special_tokens_map.json") | config
    return ChatTemplate(folder, text, _tokens(fields))


def _template_in(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{file} is not UTF-8 text.", "Copy it from the original checkpoint, or remove it."
        ) from None


def _tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that a tokenizer's files name."""
    tokens = {}
    for name in SPECIAL:
        token = fields.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return read_json_object(path)
