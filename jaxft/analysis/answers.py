"""Answers of a chat model to the first eval prompts, before a run and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from jaxft.data.text.chat import load_chat_template
from jaxft.engine.setup import Setup
from jaxft.models.generate.decode import Generator
from jaxft.models.generate.settings import read_settings
from jaxft.tasks.parts.tools import Tools

ASKED, WRITTEN = 8, 64  # prompts, and the most tokens of an answer


def answers(setup: Setup, params: Mapping[str, jax.Array]) -> list[dict[str, Any]]:
    """Generate the answers by greedy decoding.

    Args:
        setup: the run.
        params: every parameter.

    Returns:
        Of each of the first eval conversations that leave room for an answer `id`, `source` (what
        was asked last), `target` (the answer that is wanted) and `written`. None of a run on
        texts.
    """
    split, model = setup.splits["eval"], replace(setup.model, params=dict(params))
    asked = list(setup.bound.exchanges(split.source, split.examples, ASKED))
    template = load_chat_template(model.tokenizer_folder) if asked else None
    if template is None:
        return []
    tokenizer = Tools(model, None, None).tokenizer
    texts = template.render(
        [one.asked for one in asked], [one.tools for one in asked], add_generation_prompt=True
    )
    prompts = [ids.tolist() for ids in tokenizer.encode(texts, spelled=True).ids]
    fits = [n for n, ids in enumerate(prompts) if len(ids) < model.max_positions]
    if not fits:
        return []
    room = model.max_positions - max(len(prompts[n]) for n in fits)
    how = {"do_sample": False, "num_beams": 1, "max_new_tokens": min(WRITTEN, room)}
    settings, _ = read_settings(model.source.folder, model.fields, how)
    written = Generator(model, setup.compute).generate([prompts[n] for n in fits], settings)
    return [
        {
            "id": n,
            "source": _text(asked[n].asked[-1].get("content")),
            "target": asked[n].answer,
            "written": tokenizer.decode(tokens),
        }
        for n, tokens in zip(fits, written, strict=True)
    ]


def _text(content: Any) -> str:
    """Return the text of a message; its parts of other kinds are left out."""
    if isinstance(content, list | tuple):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""
