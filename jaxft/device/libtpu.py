"""The TPU compiler, libtpu: its installed version against the one that jax pins."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

Look = Callable[[str], str | None]


def installed_version(package: str) -> str | None:
    """Return the installed version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def libtpu_mismatch(
    look: Look = installed_version, pinned: SpecifierSet | None = None
) -> tuple[str, str] | None:
    """Return the fault of a libtpu that is not the one for this jax, and its mend; None if it is.

    The two must come from one release: another libtpu compiles a program whose text jax then cannot
    read, or none at all. jax's own extra `tpu` pins the libtpu that it was tested with.

    Args:
        look: a package -> its installed version, or None.
        pinned: the versions of libtpu that jax pins; those of the installed jax by default.
    """
    installed = look("libtpu")
    pinned = _pinned() if pinned is None else pinned
    if installed is None or pinned.contains(installed, prereleases=True):
        return None
    return (
        f"libtpu {installed} is installed, and jax {look('jax')} pins libtpu{pinned}.",
        f"Install it: pip install 'libtpu{pinned}'",
    )


def _pinned() -> SpecifierSet:
    """Return the versions of libtpu that the installed jax asks for; all where it pins none."""
    needs = map(Requirement, requires("jax") or ())
    return next((one.specifier for one in needs if one.name == "libtpu"), SpecifierSet())
