"""Fields of a config.json, checked: none that may change the outputs is passed over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxft.bounds import MOST_BLOCKS, MOST_VALUE
from jaxft.errors import UserError, did_you_mean
from jaxft.models.weights.field_kinds import check_kind, is_whole, quoted
from jaxft.storage.json_files import read_json_object

# What older files kept of text generation and of types, whatever the model.
GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "tf_legacy_loss",
    "top_k",
    "top_p",
    "typical_p",
    "use_bfloat16",
)
# Fields of any Hugging Face config that leave the forward computation as it is.
HARMLESS_FIELDS = frozenset(
    (
        *GENERATION,
        # What computed attention where the file was written.
        *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation"),
        "_flash_attn_2_enabled",
        "_name_or_path",
        "_num_labels",  # beside the classes, in files of transformers 2 and 3
        "architectures",
        "auto_map",  # Python code of the repository, which is never run
        "bos_token_id",
        "chunk_size_feed_forward",
        "directionality",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "label2id",
        "language",
        "model_type",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "problem_type",
        "processor_class",
        "return_dict",
        # Of a cross-encoder, what sentence-transformers applies to its scores.
        "sbert_ce_default_activation_function",
        "sentence_transformers",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        *("unsloth_fixed", "unsloth_version"),  # of its copies of Llama, Gemma and Qwen
        "use_cache",
    )
)

MOST_LEVELS = 16  # of a pyramid of images; each halves the image
TOKEN_RATE = 0.1  # dropout before a decoder's classes of tokens, where config.json has none


def read_token_rate(fields: Mapping[str, Any]) -> float:
    """Return the dropout before the classes of tokens of a decoder's config.json.

    Raises:
        UserError: it is no number.
    """
    rate = fields.get("classifier_dropout")
    check_kind("classifier_dropout", rate, None if rate is None else TOKEN_RATE)
    return TOKEN_RATE if rate is None else float(rate)


def read_fields(
    fields: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    sizes: Iterable[str],
    fixed: Mapping[str, Any],
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the fields of a family from a config.json, with defaults for absent ones.

    Args:
        fields: config.json.
        defaults: the fields the family reads -> what a config.json without the field means.
        sizes: those of them that are whole numbers above 0.
        fixed, ignore: as `check_fields` has them.

    Raises:
        UserError: a field is unknown, or a size is missing or no such number.
    """
    check_fields(fields, known=list(defaults), fixed=fixed, ignore=ignore)
    own = {name: fields.get(name, default) for name, default in defaults.items()}
    sizes = tuple(sizes)
    check_sizes(own, sizes)
    for name, default in defaults.items():
        if name not in sizes:
            check_kind(name, own[name], default)
    return own


def check_fields(
    fields: Mapping[str, Any],
    *,
    known: Sequence[str],
    fixed: Mapping[str, Any],
    ignore: Sequence[str] = (),
) -> None:
    """Refuse a config with a field that may change the computation and is not understood.

    Args:
        fields: config.json.
        known: the fields the family reads.
        fixed: fields the family computes for one value only: name -> that value.
        ignore: fields the person has judged harmless (`model.ignore`).

    Raises:
        UserError: naming the field, its value and `model.ignore`.
    """
    for name, value in fields.items():
        if name in ignore or name in known or name in HARMLESS_FIELDS:
            continue
        if name in fixed and value not in (fixed[name], None):
            raise UserError(
                f"config.json: {name} is {quoted(value)}; "
                f"only {json.dumps(fixed[name])} is supported for {fields['model_type']}."
            )
        if name not in fixed and value not in (None, False, [], {}):
            raise UserError(
                f"config.json: the field '{name}' ({quoted(value)}) is not known for "
                f"{fields['model_type']} and may change its outputs.",
                f"If it does not, set model.ignore=[{name}].",
            )


def check_sizes(fields: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise a UserError unless each of the fields is there and a whole number above 0."""
    for name in names:
        most = MOST_BLOCKS if name.endswith(("layer", "layers", "blocks")) else MOST_VALUE
        if not (is_whole(fields.get(name)) and 1 <= fields[name] <= most):
            raise UserError(f"config.json: {name} must be a whole number from 1 to {most:,}.")


def check_activation(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise a UserError unless the activation function that the field `name` asks for is known."""
    if not isinstance(value, str) or value not in known:
        raise UserError(
            f"config.json: the activation {name} '{str(value)[:80]}' is not supported.",
            did_you_mean(str(value), known),
        )


def check_lists(fields: Mapping[str, Any], names: Sequence[str], widths: str) -> None:
    """Raise a UserError unless some lists of a config.json have a value for each width.

    Args:
        fields: the config's.
        names: of the lists.
        widths: the name of the list of numbers of channels.
    """
    channels = fields[widths]
    if not isinstance(channels, list) or not 1 <= len(channels) <= MOST_LEVELS:
        raise UserError(f"config.json: {widths} must be a list of 1 to {MOST_LEVELS} numbers.")
    check_numbers(widths, channels)
    for name in names:
        if not isinstance(fields[name], list) or len(fields[name]) != len(channels):
            raise UserError(
                f"config.json: {name} must be a list of {len(channels)}, as {widths} is."
            )


def check_numbers(name: str, values: Sequence[Any]) -> None:
    """Raise a UserError unless the values of a field, or of each level, are numbers of something.

    Args:
        name: the field; one of layers has a lower bound.
        values: its value or values.
    """
    most = MOST_BLOCKS if "layers" in name or name == "depths" else MOST_VALUE
    if not all(is_whole(one) and 1 <= one <= most for one in values):
        raise UserError(
            f"config.json: {name} must be a whole number from 1 to {most:,}, or a list."
        )


def check_choices(name: str, values: Sequence[Any], known: Iterable[str]) -> None:
    """Raise a UserError unless the values of a field are among the known ones."""
    choices = list(known)
    for value in values:
        if value not in choices:
            raise UserError(
                f"config.json: {name} {quoted(value)} is not supported.",
                f"Known: {', '.join(choices)}.",
            )


def check_divides(name: str, whole: int, count: int, what: str) -> None:
    """Raise a UserError unless `whole`, the value of the field `name`, divides into `count`."""
    if whole % count:
        raise UserError(f"config.json: {name} {whole} does not divide into {count} {what}.")


def with_padding(
    fields: Mapping[str, Any], folder: Path, unpadded: Iterable[str]
) -> dict[str, Any]:
    """Return a config.json with the id of the padding token where nothing else says it.

    Args:
        fields: config.json.
        folder: where the tokenizer's files are.
        unpadded: the model types without a padding token of their own.
    """
    if "pad_token_id" not in fields and fields["model_type"] not in unpadded:
        return dict(fields)
    return {**fields, "pad_token_id": pad_token_id(fields, folder)}


def pad_token_id(fields: Mapping[str, Any], folder: Path) -> int | None:
    """Return the id of the padding token: the config's, the tokenizer's, else the end of text.

    Decoders are told nothing of padding before they are fine-tuned to classify, and transformers
    then needs to know: it reads the last token that is not this one.

    Args:
        fields: config.json.
        folder: where the tokenizer's files are.
    """
    stored = fields.get("pad_token_id")
    if isinstance(stored, int) and stored >= 0:
        return stored
    ends = fields.get("eos_token_id")
    end = ends[0] if isinstance(ends, list) and ends else ends
    pad = _tokenizer_pad(folder)
    return pad if pad is not None else (end if isinstance(end, int) else None)


def _tokenizer_pad(folder: Path) -> int | None:
    """Return the id of the pad token that the tokenizer's files name."""
    token = _read_json(folder / "tokenizer_config.json").get("pad_token")
    token = token or _read_json(folder / "special_tokens_map.json").get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return None
    described = _read_json(folder / "tokenizer.json")
    added = {one["content"]: one["id"] for one in described.get("added_tokens") or ()}
    vocabulary = (described.get("model") or {}).get("vocab")
    return added.get(token, vocabulary.get(token) if isinstance(vocabulary, dict) else None)


def _read_json(path: Path) -> dict[str, Any]:
    """Read a tokenizer's file; empty where `data/text/tokenizer.py` will refuse it."""
    try:
        return read_json_object(path)
    except (OSError, UserError):
        return {}
