"""YAML of others without anchors, which a few lines can nest into gigabytes or into itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _PlainLoader(yaml.SafeLoader):
    """Safe loader that refuses aliases; what jaxft writes has none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"an alias (*{event.anchor}), which jaxft does not write")
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    """Safe dumper that writes a value anew wherever it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def dump_plain_yaml(content: Mapping[str, Any]) -> str:
    """Write a mapping as YAML that `load_plain_yaml` reads, in its order."""
    return yaml.dump(
        dict(content), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=100
    )


def load_plain_yaml(text: str) -> Any:
    """Parse YAML as `yaml.safe_load` does, without aliases.

    Raises:
        yaml.YAMLError: it is not YAML, or has an alias.
    """
    return yaml.load(text, _PlainLoader)
