"""The `regularise` section: what holds parameters to where they began."""

from __future__ import annotations

from jaxft.config.fields import Section, key


class RegulariseSection(Section):
    """What holds a model to its checkpoint."""

    l2_sp: float = key(
        0.0,
        "decay towards where a parameter began, as weight decay is towards 0: decoupled, times its "
        "rate; what was new has none",
        resume="may change",
        ge=0,
    )
