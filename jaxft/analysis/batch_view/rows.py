"""Rows of a training batch, as the model reads them: tokens, what of them is scored, labels.

R rows of a batch, S examples per row, T positions of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxft.models.layers.batch import DECODER
from jaxft.models.layers.loss import UNSCORED

Batch = Mapping[str, np.ndarray]
Piece = Callable[[int], str]


@dataclass(frozen=True)
class Token:
    """A position of a row.

    Attributes:
        piece: the token, as the vocabulary writes it.
        number: its id.
        scored: whether the loss scores it, or the prediction that is made at it.
        target: what is to be predicted at it, where that is not the token itself: the original of
            a masked token, a word's class, the token after the end; else None.
    """

    piece: str
    number: int
    scored: bool
    target: str | None = None


@dataclass(frozen=True)
class Text:
    """The tokens of one sequence of a row; the sequences of a row do not attend to each other.

    Attributes:
        role: `input`, or `decoder`: the text that an encoder-decoder generates.
        sequence: its number in the row, from 0; an example may have several (a pair, a preference).
        tokens: its tokens.
    """

    role: str
    sequence: int
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class TokenTargets:
    """The meaning of the `targets` of a batch.

    Attributes:
        piece: token id -> its piece.
        classes: the names of the classes that targets are; None where they are token ids.
    """

    piece: Piece
    classes: Sequence[str] | None


def texts_of(batch: Batch, row: int, meaning: TokenTargets) -> list[Text]:
    """Return the sequences of a row, the input's before those of a decoder.

    Args:
        batch: a batch of `Examples.collate`.
        row: the number of the row.
        meaning: of its targets.
    """
    roles = [role for role in ("", DECODER) if f"{role}input_ids" in batch]
    texts = []
    for role in roles:
        has_targets = role == roles[-1]  # of an encoder-decoder the decoder's are scored
        ids, owners = batch[f"{role}input_ids"][row], owners_of(batch, role)[row]
        scored, targets = np.zeros(len(ids), bool), dict[int, str]()
        if has_targets and "masked_positions" in batch:
            scored, targets = _masked(batch, row, meaning)
        elif has_targets and "targets" in batch and meaning.classes is not None:
            scored, targets = _classes(batch["targets"][row], meaning.classes)
        elif has_targets and "targets" in batch:
            scored, targets = _next_tokens(batch["targets"][row], ids, owners, meaning.piece)
        for owner in range(1, int(owners.max(initial=0)) + 1):
            tokens = tuple(
                Token(meaning.piece(int(ids[at])), int(ids[at]), bool(scored[at]), targets.get(at))
                for at in np.flatnonzero(owners == owner).tolist()
            )
            texts.append(Text("decoder" if role else "input", owner - 1, tokens))
    return texts


def owners_of(batch: Batch, role: str = "") -> np.ndarray:
    """Return the sequence that each position belongs to: `[R, T]`, from 1; 0 is padding.

    Args:
        batch: a batch.
        role: the prefix of the text's names, `decoder_` or none.
    """
    present = np.any(batch["weights"] > 0, axis=1, keepdims=True)
    ids = batch[f"{role}input_ids"]
    for name in (f"{role}segment_ids", f"{role}attention_mask"):
        if name in batch:
            return np.where(present, batch[name], 0)
    return np.where(present, np.ones_like(ids), 0)  # models without a mask read the padding


def sequences_per_example(batch: Batch, row: int) -> int:
    """Return how many sequences each example of a row has."""
    if "input_ids" not in batch:  # a decoder's text alone
        return 1
    positions, segments = batch.get("read_positions"), batch["weights"].shape[1]
    if positions is not None and positions.shape[1] > segments:  # each sequence has its own
        return positions.shape[1] // segments
    examples = int((batch["example_ids"][row] >= 0).sum())
    return max(int(owners_of(batch)[row].max(initial=0)) // max(examples, 1), 1)


def _masked(batch: Batch, row: int, meaning: TokenTargets) -> tuple[np.ndarray, dict[int, str]]:
    """Return where a row is scored `[T]`, and the original of each masked token."""
    scored = np.zeros(batch["input_ids"].shape[1], bool)
    targets = {
        int(at): meaning.piece(int(target))
        for at, target in zip(batch["masked_positions"][row], batch["targets"][row], strict=True)
        if target != UNSCORED
    }
    scored[list(targets)] = True
    return scored, targets


def _classes(targets: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Return where a row is scored `[T]`, and the class of each scored token."""
    scored = targets != UNSCORED
    return scored, {int(at): names[targets[at]] for at in np.flatnonzero(scored)}


def _next_tokens(
    targets: np.ndarray, ids: np.ndarray, owners: np.ndarray, piece: Piece
) -> tuple[np.ndarray, dict[int, str]]:
    """Return which tokens of a row are predicted `[T]`, and targets that are not in the row.

    The target of a position is the token after it, so that token is the one to mark; the last
    target of a decoder's text has no token after it.
    """
    scored, beyond = np.zeros(len(ids), bool), dict[int, str]()
    for at in np.flatnonzero(targets != UNSCORED).tolist():
        after = at + 1
        if after < len(ids) and ids[after] == targets[at] and owners[after] == owners[at]:
            scored[after] = True
        else:
            beyond[at] = piece(int(targets[at]))
    return scored, beyond


def label_of(
    batch: Batch, labels: np.ndarray | None, names: Sequence[str], at: tuple[int, int]
) -> Any:
    """Return an example's label: a name, several, a number, or a mixture as name -> share.

    Args:
        batch: its batch, whose labels may be mixed.
        labels: those of all examples: see `Examples.labels`.
        names: the classes.
        at: its row and segment.
    """
    number = int(batch["example_ids"][at])
    if labels is None or number < 0:
        return None
    value = batch["labels"][at] if "labels" in batch else labels[number]
    if np.ndim(value):  # several classes, of a mixture by their shares
        whole = set(np.unique(value).tolist()) <= {0.0, 1.0}
        shares = {names[i]: round(float(value[i]), 4) for i in np.flatnonzero(value).tolist()}
        return list(shares) if whole else shares
    if value.dtype.kind == "f":
        return float(value)
    share = float(batch["mixed_shares"][at]) if "mixed_shares" in batch else 0.0
    other = names[int(batch["mixed_labels"][at])] if share else ""
    if not share or other == names[int(value)]:
        return names[int(value)]
    return {names[int(value)]: round(1 - share, 4), other: round(share, 4)}


def shares_of(batch: Batch, row: int, names: Sequence[str]) -> dict[str, float]:
    """Return the share of a row's labeled pixels that each class of its mask has, if it has any.

    Args:
        batch: with `mask_labels` `[R, H, W]`, -1 for none.
        row: the number of the row.
        names: the classes.
    """
    labels = batch["mask_labels"][row]
    counts = np.bincount(labels[labels >= 0], minlength=len(names))
    return {
        name: round(count / counts.sum(), 4)
        for name, count in zip(names, counts.tolist(), strict=True)
        if count
    }


def boxes_of(batch: Batch, row: int, names: Sequence[str], size: tuple[int, int]) -> list[dict]:
    """Return the true boxes of a row: `box` (left, top, right, bottom in pixels) and `label`.

    Args:
        batch: with `boxes` `[R, M, 4]` (center and size as fractions) and `box_labels` `[R, M]`.
        row: the number of the row.
        names: the classes.
        size: height and width of the model's input, in pixels.
    """
    boxes = []
    for box, label in zip(batch["boxes"][row], batch["box_labels"][row], strict=True):
        if label >= 0:
            (x, y, width, height), (tall, wide) = box.tolist(), size
            corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            scaled = [
                round(one * side, 1) for one, side in zip(corners, (wide, tall) * 2, strict=True)
            ]
            boxes.append({"box": scaled, "label": names[int(label)]})
    return boxes
