"""Some rows of the word embeddings, trained beside a frozen table (PEFT's trainable tokens)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxft.data.text.tokenizer import load_tokenizer
from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import ROWS, beside
from jaxft.models.layers.math import embed
from jaxft.models.layers.modules import Embedding, Leaf, parameter
from jaxft.models.tower.tower import Params, Part, Tower
from jaxft.models.weights.source import Source

WORDS = "vocab"  # the logical axis of a table's words

Ids = tuple[int, ...]


class TokenRows(Embedding):
    """Table of word embeddings [V, D] of which some rows are replaced by parameters [N, D].

    Args:
        plain: the table.
        ids: N tokens.
    """

    def __init__(self, plain: Embedding, ids: Ids):
        self.embedding, self.ids = plain.embedding, ids
        leaf: Leaf = plain.embedding.get_metadata()["leaf"]
        self.token_rows = parameter(_rows_leaf(leaf, ids))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Look up tokens: the table itself gets no gradient of its size."""
        own = ids[..., None] == jnp.asarray(self.ids)
        words = embed(self.embedding[...], ids)
        rows = own.astype(words.dtype) @ self.token_rows[...]
        return jnp.where(own.any(-1, keepdims=True), rows, words)


@dataclass(frozen=True, eq=False)
class TokenScores(Part):
    """Top that scores words with some rows of its table replaced by parameters.

    Args:
        module: the top without them.
        tables: the path of each table or kernel of words in it, and the tokens.
    """

    tables: Mapping[str, Ids]

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Return the top's parameters and the rows: path -> description."""
        own = self._plain.leaves
        rows = {beside(path, ROWS): _rows_leaf(own[path], ids) for path, ids in self.tables.items()}
        return own | rows

    @cached_property
    def _plain(self) -> Part:
        return Part(self.module)

    def bind(self, values: Params, *, mesh: jax.sharding.Mesh | None = None) -> Any:
        """Return the module with `values` in it, the rows written into their tables."""
        own = {path: values[path] for path in self._plain.leaves}
        for path, ids in self.tables.items():
            own[path] = with_rows(path, own[path], values[beside(path, ROWS)], ids)
        return self._plain.bind(own, mesh=mesh)


def _rows_leaf(table: Leaf, ids: Ids) -> Leaf:
    """Describe the rows of a table [V, D], or of a kernel [D, V], as [N, D]."""
    words = table.axes.index(WORDS)
    return Leaf((len(ids), table.shape[1 - words]), ("rank", table.axes[1 - words]))


def with_rows(name: str, table: jax.Array, rows: jax.Array, ids: Ids) -> jax.Array:
    """Write rows [N, D] into a table [V, D]; into the columns of a kernel [D, V], by its name."""
    where = jnp.asarray(ids)
    if name.endswith("kernel"):
        return table.at[:, where].set(rows.T.astype(table.dtype))
    return table.at[where].set(rows.astype(table.dtype))


def rows_of(name: str, table: jax.Array, ids: Ids) -> jax.Array:
    """Read rows [N, D] of a table [V, D], or the columns of a kernel [D, V], by its name."""
    where = jnp.asarray(ids)
    return table[:, where].T if name.endswith("kernel") else table[where]


def inject_rows(
    towers: Mapping[str, Tower | Part], ids: Ids
) -> tuple[dict[str, Tower | Part], dict[str, Ids]]:
    """Put rows for some tokens beside every table of words, the input's and the scores'.

    Args:
        towers: without any.
        ids: the tokens; none for the towers as they are.

    Returns:
        The towers, and each table that has such rows: its name -> the tokens.

    Raises:
        UserError: no tower reads words.
    """
    replaced = dict(towers)
    tables: dict[str, Ids] = {}
    if not ids:
        return replaced, tables
    for name, tower in towers.items():
        if not isinstance(tower, Tower):
            continue
        of_stem, of_top = list(_tables(tower.stem)), list(_tables(tower.top))
        linked = (*of_stem, *of_top)
        tables |= {tower.prefix + path: ids for path in linked if tower.owns(path)}
        replaced[name] = replace(
            tower,
            stem=_with_lookup(tower.stem, of_stem, ids),
            top=TokenScores(tower.top.module, dict.fromkeys(of_top, ids)) if of_top else tower.top,
            ties=_with_links(tower.ties, linked),
            borrowed=_with_links(tower.borrowed, linked),
        )
    if not tables:
        raise UserError("adapter.trainable_tokens: the model has no word embeddings.")
    return replaced, tables


def _tables(part: Part) -> Iterator[str]:
    """Yield the paths of a part's tables and kernels of words."""
    for path, leaf in part.leaves.items():
        if len(leaf.shape) == 2 and WORDS in leaf.axes:
            yield path


def _with_lookup(stem: Part, paths: Sequence[str], ids: Ids) -> Part:
    if not paths:
        return stem
    module = nnx.clone(stem.module)
    for path in paths:
        *above, last, _ = path.split("/")
        owner = reduce(getattr, above, module)
        setattr(owner, last, TokenRows(getattr(owner, last), ids))
    return Part(module)


def _with_links(links: Mapping[str, str], tables: Iterable[str]) -> dict[str, str]:
    """Add to each table that is another's its rows, which are that one's."""
    own = {beside(path, ROWS): beside(links[path], ROWS) for path in tables if path in links}
    return {**links, **own}


def token_ids(tokens: Sequence[str | int], source: Source, vocab_size: int) -> Ids:
    """Return the ids of tokens that are written as text or as ids, each once.

    Args:
        tokens: of the config.
        source: where the tokenizer is.
        vocab_size: of the model.

    Raises:
        UserError: a token is not in the vocabulary.
    """
    ids = []
    for token in tokens:
        number = token if isinstance(token, int) else _id_of(token, source)
        if not 0 <= number < vocab_size:
            raise UserError(
                f"adapter.trainable_tokens: {token} is not an id below {vocab_size}, the number of "
                "the model's tokens.",
                "Tokens that were added to the tokenizer need model.resize_vocab=true.",
            )
        ids.append(number)
    return tuple(dict.fromkeys(ids))


def _id_of(token: str, source: Source) -> int:
    number = load_tokenizer(source.tokenizer_folder).id_of(token)
    if number is None:
        raise UserError(
            f"adapter.trainable_tokens: the tokenizer has no token '{token}'.",
            f"Add it to the tokenizer in '{source.tokenizer_folder}', or write the token as it is "
            "in the vocabulary.",
        )
    return number
