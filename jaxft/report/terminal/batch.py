"""The terminal output of `jaxft data show`: rows of a batch, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jaxft.visible import visible

MOST_TOKENS = 400  # of a sequence
SCORED, UNSCORED, TARGET, PADDING = "bold green", "dim", "magenta", "dim"
OPEN, CLOSE = "⟦", "⟧"  # around what is scored: color alone is lost in a file


def batch_rows(
    split: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], sheet: str | None
) -> RenderableType:
    """Return the rows of a batch, one paragraph each.

    Args:
        split, rows, sheet: see `jaxft.analysis.batch_view.story.BatchView`.
    """
    title = (
        f"{split['split']}: {len(rows)} of the {split['batch_rows']:,} rows of batch "
        f"{split['step']:,}, from {split['source']}"
    )
    shown: list[RenderableType] = [Text(title, "bold")]
    if split["random"]:
        shown.append(Text("Each epoch reads the examples with other random changes.", "dim"))
    if any(_is_scored(text) for row in rows for text in row.get("texts", ())):
        legend = Text("The loss scores ")
        legend.append(f"{OPEN}these tokens{CLOSE}", SCORED).append("; ")
        shown.append(legend.append("these are read only", UNSCORED).append("."))
    for number, row in enumerate(rows, 1):
        shown += ["", *_row(number, row)]
    if sheet is not None:
        shown += ["", Text(f"{sheet}: the images")]
    elif any("image" in row for row in rows):
        shown += ["", Text("--out sheet.png draws the images.", "dim")]
    return Group(*shown)


def _row(number: int, row: Mapping[str, Any]) -> list[RenderableType]:
    """Return a row: a line about it, and its examples."""
    examples, texts = row["examples"], row.get("texts", ())
    about = f"row {number}: "
    about += "1 example" if len(examples) == 1 else f"{len(examples)} examples in one row"
    if texts:
        read = sum(len(text["tokens"]) for text in texts)
        about += f", {read:,} tokens, {row['padding']:,} padding"
    if "image" in row:
        about += f", an image of {row['image']['height']} x {row['image']['width']} pixels"
    lines: list[RenderableType] = [Text(about, "bold")]
    for position, example in enumerate(examples):
        lines.append(_example(example))
        lines += [Text(f"  {_box(one)}") for one in row.get("boxes", ())]
        shares = row.get("shares", {}).items()
        lines += [Text(f"  {visible(name)}: {part:.1%} of the pixels") for name, part in shares]
        own = [text for text in texts if text["sequence"] // row["sequences"] == position]
        for text in own:
            lines.append(_tokens(text, _name(text, row["sequences"])))
    return lines


def _example(example: Mapping[str, Any]) -> Text:
    """Return the line of an example: its row in the source, its label, tokens cut away."""
    # Written out before the line is broken, which would else cut what is longer then.
    line = Text(visible(f"  {example['row']}"))
    if "label" in example:
        line.append("  label ").append(visible(label_text(example["label"])), "bold cyan")
    for name, value in example.items():
        if name not in ("example", "row", "label", "cut"):
            line.append(visible(f"  {name} {value}"))
    if cut := example.get("cut"):
        line.append(f"  {cut:,} tokens cut", "yellow")
    return line


def label_text(label: Any) -> str:
    """Return a label: a name, several, a number, or the shares of a mixture."""
    if isinstance(label, Mapping):
        return " + ".join(f"{share:.2f} {name}" for name, share in label.items())
    if isinstance(label, list):
        return ", ".join(label) or "none"
    return label if isinstance(label, str) else f"{label:.6g}"


def _box(one: Mapping[str, Any]) -> str:
    return f"{visible(one['label'])}: {', '.join(f'{side:.0f}' for side in one['box'])}"


def _name(text: Mapping[str, Any], sequences: int) -> str:
    """Return the heading of a sequence, where an example has several."""
    if text["role"] == "decoder":
        return "decoder "
    return f"{text['sequence'] % sequences + 1} of {sequences} " if sequences > 1 else ""


def _is_scored(text: Mapping[str, Any]) -> bool:
    return any(token["scored"] or token["target"] is not None for token in text["tokens"])


def _tokens(text: Mapping[str, Any], name: str) -> Text:
    """Return the tokens of a sequence: spans that are scored in color and in brackets."""
    line, plain = Text("  ").append(name, "bold"), UNSCORED if _is_scored(text) else ""
    tokens, before = text["tokens"][:MOST_TOKENS], False
    for number, token in enumerate(tokens):
        scored = token["scored"]
        if number:
            line.append(CLOSE if before and not scored else "", SCORED).append(" ")
        if scored and not before:
            line.append(OPEN, SCORED)
        line.append(visible(token["piece"]), SCORED if scored else plain)
        if token["target"] is not None:
            line.append(visible(f"→{token['target']}"), TARGET)
        before = scored
    line.append(CLOSE if before else "", SCORED)
    left = len(text["tokens"]) - len(tokens)
    return line.append(f" ... and {left:,} more tokens (--json has all)", PADDING) if left else line
