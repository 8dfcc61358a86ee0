"""Kinds of value that the fields of a config.json may have, by their names and defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxft.bounds import MOST_BLOCKS, MOST_CLASSES, MOST_SIDE_PIXELS, MOST_VALUE
from jaxft.errors import UserError
from jaxft.storage.json_files import is_number

LONGEST_QUOTE = 80  # characters of a value in a message


def quoted(value: Any) -> str:
    """Return a field's value as JSON, shortened for a message."""
    text = json.dumps(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}..."


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, and neither true nor false."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_scale(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_epsilon(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _is_rate(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_image_size(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value, value]
    return len(sides) == 2 and all(
        is_whole(side) and 1 <= side <= MOST_SIDE_PIXELS for side in sides
    )


def _are_token_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) and value else [value]
    return all(is_whole(one) and -1 <= one <= MOST_VALUE for one in ids)


def _is_count(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= MOST_VALUE


def _is_class_count(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= MOST_CLASSES


def _are_block_kinds(value: Any) -> bool:
    """Return whether a value is GPT-Neo's list of pairs: kinds of blocks, and how many times."""
    return isinstance(value, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and _are_strings(pair[0])
        and is_whole(pair[1])
        and 0 <= pair[1] <= MOST_BLOCKS
        for pair in value
    )


def _are_flags(value: Any) -> bool:
    return isinstance(value, list) and all(one in (0, 1) for one in value)


def _is_depth(value: Any) -> bool:
    return is_whole(value) and 1 <= value <= MOST_BLOCKS


def _is_index(value: Any) -> bool:
    return is_whole(value) and 0 <= value <= MOST_VALUE


def _are_indices(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_index, value))


def _are_labels(value: Any) -> bool:
    return isinstance(value, dict) and all(
        str(number).isdecimal() and isinstance(name, str) for number, name in value.items()
    )


def _are_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


# Fields that real files set to null though a file without them means something.
NULLABLE = (
    r"_token_id$|^(sliding_window|num_key_value_heads|head_dim|pos_embed_rescale)$|softcapping$"
)
COUNTS = (
    r"^(num_|n_inner$|head_dim|ffn_dim|intermediate_size|embedding_size|word_embed_proj_dim|"
    r"pooler_output_size|projection_|type_vocab_size|window_size|sliding_window|"
    r"no_rope_layer_interval)"
)
# What a field may hold, by its name: a pattern, the kind in words, and whether a value is of it.
KINDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    (r"_token_id$", "a token id or a list of them", _are_token_ids),
    (r"^(image|img|patch|sample)_size$", "a number of pixels, or height and width", _is_image_size),
    (r"(dropout|dropout_prob|_pdrop|_rate)$", "a number from 0 to less than 1", _is_rate),
    (r"_(eps|epsilon)$", "a number above 0 and below 1", _is_epsilon),
    (r"^(initializer_range|initializer_factor|init_std)$", "a number of 0 or more", _is_scale),
    (r"^(rope_theta|rope_local_base_freq)$", "a number above 0", _is_positive),
    (
        r"(softcapping|_multiplier|^logits_scaling|^query_pre_attn_scalar|^mlp_ratio|^swiglu_\w+)$",
        "a number above 0",
        _is_positive,
    ),
    (r"^pos_embed_(jitter|rescale)$", "a number above 0", _is_positive),
    (r"^pos_embed_shift$", "a number of 0 or more", _is_scale),
    (r"^rope_(parameters|scaling)$", "an object", lambda value: isinstance(value, dict)),
    (
        r"^((mlp_only|dual_attention)_layers|window_block_indexes)$",
        "a list of numbers of blocks",
        _are_indices,
    ),
    (r"^(layer_types|architectures)$", "a list of strings", _are_strings),
    (r"^id2label$", "an object of numbers and names", _are_labels),
    (r"^no_rope_layers$", "a list of 0 and 1", _are_flags),
    (r"^(router_aux_loss_coef|clip_qkv|init_values)$", "a number of 0 or more", _is_scale),
    (r"^attention_types$", "a list of pairs of kinds and a number", _are_block_kinds),
    (r"^max_window_layers$", "a whole number of 0 or more", _is_index),
    (r"(_layers|^depth)$", f"a whole number from 1 to {MOST_BLOCKS:,}", _is_depth),
    (r"^num_labels$", f"a whole number from 1 to {MOST_CLASSES:,}", _is_class_count),
    (COUNTS, "a whole number above 0", _is_count),
)
# Likewise by the type of its default, where no pattern matches.
OF_DEFAULT: Mapping[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: value in (True, False)),
    int: ("a whole number of 0 or more", _is_index),
    float: ("a number", is_number),
    str: ("a string", lambda value: isinstance(value, str)),
}
ANY = ("anything", lambda value: True)  # its reader checks it


def check_kind(name: str, value: Any, default: Any) -> None:
    """Raise a UserError unless a field's value is of the kind that its name or default asks for.

    Args:
        name: the field; one of `KINDS` may match it.
        value: what config.json has; null is right where the default is, and for `NULLABLE`.
        default: what a config.json without the field means; lists and objects are their readers'.
    """
    if isinstance(default, list) and default and all(map(is_number, default)):
        return  # a number for each level
    if value is None and (default is None or re.search(NULLABLE, name)):
        return
    if is_whole(value) and is_whole(default) and value == default:  # -1 or 0 for none, mostly
        return
    by_name = [(kind, is_right) for pattern, kind, is_right in KINDS if re.search(pattern, name)]
    kind, is_right = by_name[0] if by_name else OF_DEFAULT.get(type(default), ANY)
    if not is_right(value):
        raise UserError(f"config.json: {name} is {quoted(value)}, and must be {kind}.")
