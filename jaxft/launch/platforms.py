"""The platforms that jax looks for, set before it is imported."""

from __future__ import annotations

from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

GOOGLE = "0x1ae0"  # the vendor of TPUs on the PCI bus, and of some of Google's network cards
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin")


def leave_out_absent_tpu(environment: MutableMapping[str, str], root: Path = Path("/")) -> bool:
    """Restrict jax to the CPU if libtpu is installed (for planning) but there is no accelerator.

    libtpu looks for its chips and complains about each that it does not find, in many lines. Any
    sign of a TPU or another accelerator leaves the choice to jax.

    Args:
        environment: gets `JAX_PLATFORMS`.
        root: the folder that holds `dev` and `sys`.

    Returns:
        Whether the variable was set.
    """
    hinted = "JAX_PLATFORMS" in environment or any(name.startswith("TPU_") for name in environment)
    if hinted or not find_spec("libtpu") or any(map(find_spec, GPU_PLUGINS)):
        return False
    chips = (*root.glob("dev/accel*"), *root.glob("dev/vfio/[0-9]*"))
    vendors = root.glob("sys/bus/pci/devices/*/vendor")
    if chips or any(vendor.read_text().strip() == GOOGLE for vendor in vendors):
        return False
    environment["JAX_PLATFORMS"] = "cpu"
    return True
