"""Options of each platform's compiler for a step, and why.

Where several devices train, a collective (fsdp gathers a block's weights, and scatters the sum of
its gradients) should run while something is computed. No jax here: the platform is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from packaging.version import Version

# A TPU's compiler is told nothing. It hides collectives by itself: libtpu 0.0.42 made the same
# program of a scan over blocks with fsdp, fused collectives and all, with
# `xla_tpu_enable_latency_hiding_scheduler`, `xla_tpu_enable_async_collective_fusion` (and its
# `_fuse_all_gather` and `_multiple_steps`) and `xla_tpu_overlap_compute_collective_tc` on as
# without a word. A name that another libtpu does not know would end the run. Collective matmul
# (`xla_jf_spmd_threshold_for_windowed_einsum_mib`) is likewise left to its own threshold.
_REASONS: Mapping[str, Mapping[str, str]] = {
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": (
            "orders what is computed so that a collective is under way meanwhile; without it XLA "
            "keeps the order in which it runs out of operands"
        ),
        "xla_gpu_enable_pipelined_all_gather": (
            "a scan gathers the weights of the block to come while this one is computed; within "
            "one trip of the scan there is nothing to do meanwhile"
        ),
        "xla_gpu_enable_pipelined_reduce_scatter": (
            "the same on the way back: a block's gradients are summed while the next is computed"
        ),
        "xla_gpu_enable_pipelined_all_reduce": (
            "the same for what is not cut, such as norms, and for a mesh of `data` alone"
        ),
    }
}
# Later releases of jaxlib know no such options, and one that is not known ends the run.
_PIPELINED = "xla_gpu_enable_pipelined_"
_WITHOUT_PIPELINED = Version("0.11")


def compiler_options(
    platform: str, devices: int, jaxlib: str | None = None
) -> dict[str, bool] | None:
    """Return the options that `jax.jit` and `Lowered.compile` pass on to the compiler.

    Args:
        platform: what the mesh's devices are: `cpu`, `gpu` or `tpu`.
        devices: how many; one has no collectives.
        jaxlib: its version; that of the installed one by default.

    Returns:
        Option -> value, or None for none.

    Source: NVIDIA, https://docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance; not
        measured here, where no two GPUs are at hand.
    """
    reasons = _REASONS.get(platform, {}) if devices > 1 else {}
    known = Version(jaxlib or version("jaxlib")) < _WITHOUT_PIPELINED
    return {name: True for name in reasons if known or not name.startswith(_PIPELINED)} or None
