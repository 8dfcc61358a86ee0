"""Options of generating text and images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

# Options of text generation.
WRITING: Any = {"rich_help_panel": "Text generation", "show_default": False}
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--no-chat", help="Use the chat template, or not.", **WRITING),
]
Most = Annotated[int | None, typer.Option(help="Maximum length of an answer in tokens.", **WRITING)]
Temperature = Annotated[
    float | None, typer.Option(help="Sample at this temperature; 0 is greedy.", **WRITING)
]
TopK = Annotated[int | None, typer.Option(help="Sample from the K most likely tokens.", **WRITING)]
TopP = Annotated[
    float | None,
    typer.Option(help="Sample from the top tokens with this total probability.", **WRITING),
]
MinP = Annotated[
    float | None,
    typer.Option(help="Minimum probability, as a fraction of the top token's.", **WRITING),
]
Beams = Annotated[int | None, typer.Option(help="Beam search with this many beams.", **WRITING)]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.", **WRITING)]
Stop = Annotated[
    list[str] | None, typer.Option(help="Stop before this text; may be repeated.", **WRITING)
]
IMAGES: Any = {"rich_help_panel": "Image generation", "show_default": False}
Samples = Annotated[
    int | None,
    typer.Option(
        min=1, help="Generate this many images, of each class if there are any.", **IMAGES
    ),
]
Class = Annotated[
    str | None, typer.Option("--class", help="The class of the generated images.", **IMAGES)
]


def sampling_of(temperature: float | None) -> dict[str, Any]:
    """Return the settings of a temperature; 0 means greedy decoding."""
    if temperature is None or temperature == 0:
        return {"do_sample": None if temperature is None else False}
    return {"do_sample": True, "temperature": temperature}
