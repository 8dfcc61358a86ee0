"""Tagged sentences of data sources: words and tags row by row, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxft.data.sources.source import Source
from jaxft.data.text.tags import OUTSIDE, fault_of, to_iob2
from jaxft.data.text.tags import tag_names as names_of
from jaxft.errors import UserError
from jaxft.tasks.parts.labels import MOST_NAMED, column_of
from jaxft.tasks.token_classification.section import TokenClassificationSection as Section


def check_words(source: Source, column: str) -> None:
    """Raise a UserError if a row is not a sentence, a list of words that are not empty."""
    for row, words in enumerate(column_of(source, column)):
        check_sentence(source.place(row), words, column)


def check_sentence(where: str, words: Any, column: str) -> None:
    """Raise a UserError if a cell is not a list of words, or one of them is empty."""
    if not _is_list(words) or not all(isinstance(word, str) for word in words):
        raise UserError(
            f"{where} has {column} that are not a list of words ({str(words)[:40]!r}).",
            "Give a list of words and a list of as many tags: conll: or jsonl:.",
        )
    if not len(words):
        raise UserError(f"{where} has no words.", "Leave the row out.")
    blank = next((number for number, word in enumerate(words) if not word.strip()), None)
    if blank is not None:
        raise UserError(f"{where}: word {blank + 1} is empty.", "Leave the word out.")


def tag_names(source: Source, section: Section) -> tuple[str, ...]:
    """Return the tags in order of id: the config's, else the data's names, else its tags.

    Args:
        source: the training rows.
        section: the config's `task`.

    Raises:
        UserError: the tags are numbers without names, or none of them is of an entity.
    """
    named = section.labels or source.class_names(section.tags)
    tags = tuple(named or names_of(_written(source, section)))
    fault = fault_of(tags, "iob1")
    if fault is not None or OUTSIDE not in tags:
        odd = "lacks O" if fault is None else f"has '{tags[fault.word]}'"
        raise UserError(
            f"task.labels: the list of tags {odd} ({', '.join(tags[:MOST_NAMED])}).",
            "Tags are O, and B-TYPE and I-TYPE of each type.",
        )
    if len(tags) < 2:
        tag_ids(source, section, tags)  # raises for a row with an invalid tag
        raise UserError(
            f"{source.spec}: every word is tagged {OUTSIDE}, so there is no entity to learn.",
            "Check the slice, and the column of task.tags.",
        )
    return tags


def tag_ids(source: Source, section: Section, names: Sequence[str]) -> list[np.ndarray]:
    """Return the tag ids of each sentence: `[words]` int32.

    Args:
        source: the rows; a tag is its name, or its id.
        section: the config's `task`.
        names: the tags in order of id.

    Raises:
        UserError: the numbers of tags and words differ, a tag is not among `names`, or an entity
            does not begin by its scheme.
    """
    words, tags = section.tokens, section.tags
    return [
        sentence_tags(source.place(row), one[words], one[tags], section, names)
        for row, one in source.each((words, tags))
    ]


def sentence_tags(
    where: str, words: Any, tags: Any, section: Section, names: Sequence[str]
) -> np.ndarray:
    """Return the tag ids of a sentence: `[words]` int32.

    Args:
        where: the row's name in messages.
        words, tags: the row's cells.
        section, names: as in `tag_ids`.

    Raises:
        UserError: as `tag_ids`.
    """
    if not _is_list(tags):
        raise UserError(
            f"{where} has {section.tags} that are not a list ({str(tags)[:40]!r}).",
            "Give a list of tags, one per word.",
        )
    if len(words) != len(tags):
        raise UserError(
            f"{where} has {len(words)} words and {len(tags)} tags.", "Give each word one tag."
        )
    named = [_name(tag, names) for tag in tags]
    fault = fault_of(named, section.scheme)
    if fault is not None:
        raise UserError(
            f"{where}: word {fault.word + 1} ('{words[fault.word]}') {fault.problem}.", fault.hint
        )
    named, index = list(to_iob2(named)), {name: number for number, name in enumerate(names)}
    unknown = next((number for number, tag in enumerate(named) if tag not in index), None)
    if unknown is not None:
        raise UserError(
            f"{where}: word {unknown + 1} ('{words[unknown]}') has the tag "
            f"'{named[unknown]}', which is not among the train set's "
            f"({', '.join(names[:MOST_NAMED])}{', ...' if len(names) > MOST_NAMED else ''}).",
            "Correct the tag, or leave the row out.",
        )
    return np.array([index[tag] for tag in named], np.int32)


def _written(source: Source, section: Section) -> Iterator[list[str]]:
    """Yield the tags of each row that has a list of them, as written."""
    for row, tags in enumerate(column_of(source, section.tags)):
        if not _is_list(tags):
            continue  # refused, or left out, when the row is read
        if any(not isinstance(tag, str) for tag in tags):
            raise UserError(
                f"{source.place(row)} has numbers for tags, which have no names.",
                "Name them in order in task.labels: [O, B-person, I-person, ...].",
            )
        yield list(tags)


def _name(tag: Any, names: Sequence[str]) -> str:
    """Return a tag's name; a number is an index of `names`."""
    if isinstance(tag, str):
        return tag
    known = isinstance(tag, int | np.integer) and 0 <= tag < len(names)
    return names[tag] if known else str(tag)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)
