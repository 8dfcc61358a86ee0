"""Options of generating text and images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jaxft.errors import UserError

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
Seed = Annotated[
    int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the sampling.", **WRITING)
]
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


def sampling_of(temperature: float | None, **limits: float | None) -> dict[str, Any]:
    """Return the settings of sampling: any of its options samples, but a temperature of 0.

    Args:
        temperature: `--temperature`; None where it is not set.
        limits: the other options, by the names of their settings.

    Raises:
        UserError: an option limits what is sampled, and the temperature is 0.
    """
    asked: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
    if temperature == 0:
        for name in asked:
            raise UserError(
                f"--temperature 0 is greedy, and --{name.replace('_', '-')} is of sampling.",
                "Leave one of them out.",
            )
        return {"do_sample": False}
    asked |= {} if temperature is None else {"temperature": temperature}
    return {"do_sample": True, **asked} if asked else {}
