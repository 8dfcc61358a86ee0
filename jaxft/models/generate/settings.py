"""Settings of text generation: the user's, over those of the checkpoint's files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_BEAMS, MOST_CACHED_TOKENS
from jaxft.errors import UserError
from jaxft.models.generate.choose import Rule
from jaxft.storage.json_files import read_json_object

MOST_NEW_TOKENS = 256  # where nobody says how many
TOKEN_LISTS = ("eos_token_id", "forced_eos_token_id", "bad_words_ids")
FILE = "generation_config.json"
UNSET_LENGTH = 20  # `max_length` of old config.json files in which nobody has set it


@dataclass(frozen=True)
class Settings:
    """Settings of text generation, with the names, meanings and defaults of `transformers`.

    Args:
        max_new_tokens: the most tokens added to a prompt.
        max_length: the most tokens of prompt and what is added, where `max_new_tokens` is None.
        do_sample: draw tokens instead of taking the most likely.
        temperature: scores are divided by it before sampling.
        top_k: draw from so many of the most likely; 0 for all.
        top_p: draw from the most likely that have this probability together.
        min_p: draw from those that have this share of the most likely one's probability.
        repetition_penalty: scores of tokens that are there already are divided by it (or
            multiplied where they are negative).
        num_beams: how many texts are followed; the best whole one is given.
        length_penalty: a whole text's log-probability is divided by its length to this power.
        early_stopping: end as soon as there are `num_beams` whole texts (True), when the running
            ones are unlikely to become better (False), or cannot ("never").
        eos_token_id: tokens that end a text.
        forced_bos_token_id: the first token of a text that is generated from a source, such as the
            language to translate into; None for any.
        forced_eos_token_id: the last token of a text that reaches its limit; empty for any.
        bad_words_ids: tokens that are never generated.
        stop_strings: texts that end a text; looked for on the host.
        seed: of the sampling.

    Raises:
        UserError: a value out of range, or two that do not go together.
    """

    max_new_tokens: int | None = MOST_NEW_TOKENS
    max_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    bad_words_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        _refuse_unless(_is_count(self.max_new_tokens, 1), "max_new_tokens", "at least 1")
        _refuse_unless(_is_count(self.max_length, 1), "max_length", "at least 1")
        _refuse_unless(_is_count(self.top_k, 0), "top_k", "a whole number, 0 for all")
        beams = _is_count(self.num_beams, 1) and self.num_beams <= MOST_BEAMS
        _refuse_unless(beams, "num_beams", f"from 1 to {MOST_BEAMS}")
        seed = _is_count(self.seed, 0) and self.seed < 2**63
        _refuse_unless(seed, "seed", "from 0 to 2^63 - 1")
        _refuse_unless(self.temperature > 0, "temperature", "above 0")
        _refuse_unless(self.repetition_penalty > 0, "repetition_penalty", "above 0")
        _refuse_unless(0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        _refuse_unless(self.min_p is None or 0 <= self.min_p <= 1, "min_p", "between 0 and 1")
        _refuse_unless(
            self.early_stopping in (True, False, "never"), "early_stopping", "true, false or never"
        )
        for name in TOKEN_LISTS:
            least = -1 if name == "eos_token_id" else 0  # some files end texts by no token
            ids = all(_is_count(token, least) for token in getattr(self, name))
            _refuse_unless(ids, name, "a token id, or a list of them")
        first = _is_count(self.forced_bos_token_id, 0)
        _refuse_unless(first, "forced_bos_token_id", "a token id")
        stops = all(isinstance(stop, str) and stop for stop in self.stop_strings)
        _refuse_unless(stops, "stop_strings", "strings that are not empty")
        if self.num_beams > 1 and self.do_sample:
            raise UserError(
                "Beam search does not sample.", "Give num_beams (--beams) or options of sampling."
            )
        if self.num_beams > 1 and self.stop_strings:
            raise UserError(
                "Beam search does not support stop strings.",
                "Give num_beams or stop_strings, not both.",
            )

    def rule(self, step: int, from_source: bool) -> Rule:
        """Return which tokens may come at a step.

        Args:
            step: how many tokens were added before.
            from_source: whether texts are generated from sources.
        """
        first = self.forced_bos_token_id
        forced = (first,) if first is not None and from_source and step == 0 else ()
        never = tuple(token for token in self.bad_words_ids if token not in self.eos_token_id)
        # Where both are forced, transformers forces the end.
        return Rule(never, forced, self.forced_eos_token_id)


def check_cache(tokens: int, settings: Settings) -> None:
    """Raise a UserError if a batch of texts has more tokens than a cache is made for.

    Args:
        tokens: of all texts that are written together, prompts included.
        settings: each beam has a cache of its own.
    """
    if tokens * settings.num_beams > MOST_CACHED_TOKENS:
        raise UserError(
            f"{tokens:,} tokens with {settings.num_beams} beam(s) are more than "
            f"{MOST_CACHED_TOKENS:,}, the most that are written together.",
            "Lower max_new_tokens (--max-new-tokens) or num_beams (--beams).",
        )


def _is_count(value: int | None, least: int) -> bool:
    return value is None or (isinstance(value, int) and value >= least)


def _refuse_unless(holds: bool, name: str, wanted: str) -> None:
    if not holds:
        raise UserError(f"{name} must be {wanted}.")


KNOWN = tuple(name for name in Settings.__dataclass_fields__ if name != "seed")
# Fields that leave the tokens as they are; and, of the others, the values that mean nothing.
HARMLESS = (
    "_from_model_config",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "decoder_start_token_id",
    "disable_compile",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
)
NEUTRAL: Mapping[str, Any] = {
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
}


def read_settings(
    folder: Path, fields: Mapping[str, Any], asked: Mapping[str, Any]
) -> tuple[Settings, tuple[str, ...]]:
    """Read the settings: the user's, else those of the checkpoint's files.

    Args:
        folder: the checkpoint's.
        fields: its config.json.
        asked: fields of `Settings` that the person set.

    Returns:
        The settings, and a sentence on each field of the file that would change the tokens and
        is not supported.

    Raises:
        UserError: the file is not a JSON object, a value is out of range, or there is a seed of
            nothing.
    """
    stored = stored_settings(folder, fields)
    path = folder / (FILE if (folder / FILE).is_file() else "config.json")
    words = _single_tokens(stored.get("bad_words_ids"))
    longer = {"bad_words_ids"} - words.keys()
    passed = {*KNOWN, *HARMLESS} - longer
    odd = [n for n in stored if n not in passed and _says(stored[n], n)]
    notes = tuple(
        f"{path.name}: {name} ({json.dumps(stored[name])}) is not supported, and tokens "
        "are chosen without it."
        for name in odd
    )
    own = {n: stored[n] for n in KNOWN if n in stored and n != "bad_words_ids"} | words
    own |= {name: _tuple(own[name]) for name in (*TOKEN_LISTS, "stop_strings") if name in own}
    try:
        Settings(**_agreed(own, {}))
    except TypeError:
        raise UserError(f"{path} has text where a number is expected.") from None
    except UserError as error:
        raise UserError(f"{path}: {error.message}", error.hint) from None
    settings = Settings(**_agreed(own, asked))
    if "seed" in asked and not settings.do_sample:
        raise UserError(
            "seed is set, and no token is sampled.", "Give a temperature too (--temperature 1)."
        )
    return settings, notes


def stored_settings(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a checkpoint's files have, with the names of transformers.

    Without a generation_config.json they are in config.json, or in its decoder's part, as
    transformers 4.25 and older wrote them.

    Args:
        folder: the checkpoint's.
        fields: its config.json.
    """
    if (folder / FILE).is_file():
        stored = read_json_object(folder / FILE)
    else:
        inner = fields.get("decoder") or fields.get("text_config")
        inner = inner if isinstance(inner, Mapping) else {}
        stored = {**inner, **{name: one for name, one in fields.items() if one is not None}}
        stored = {name: one for name, one in stored.items() if name in {*KNOWN, *NEUTRAL}}
        if stored.get("max_length") == UNSET_LENGTH:
            del stored["max_length"]
    return {name: value for name, value in stored.items() if value is not None}


def _agreed(own: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the file's settings and the user's, without the file's that conflict with them."""
    both = {**own, **asked}
    if "max_new_tokens" in both:
        both.pop("max_length", None)
    elif "max_length" in both:
        both["max_new_tokens"] = None
    clash = both.get("num_beams", 1) > 1 and both.get("do_sample")
    if clash and not {"num_beams", "do_sample"} <= asked.keys():
        # transformers draws the beams' tokens then; here a temperature that was asked for rules.
        both |= {"num_beams": 1} if "do_sample" in asked else {"do_sample": False}
    return both


def _says(value: Any, name: str) -> bool:
    """Return whether a field's value means that tokens are chosen otherwise."""
    return value != NEUTRAL[name] if name in NEUTRAL else value not in (False, [], {})


def _single_tokens(words: Any) -> dict[str, tuple[Any, ...]]:
    """Return `bad_words_ids` of a file, lists of tokens, where each word is one token."""
    lists = isinstance(words, list) and all(isinstance(word, list) for word in words)
    if not lists or any(len(word) != 1 for word in words):
        return {}
    return {"bad_words_ids": tuple(word[0] for word in words)}


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
