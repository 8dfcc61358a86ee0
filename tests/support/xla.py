"""XLA's flags of the test session, and of the processes that tests start."""

import os
from importlib.metadata import version

from packaging.version import Version

DEVICES = "--xla_force_host_platform_device_count"
# Later releases have no such option, and end the process at one that they do not know.
FUSION_EMITTERS = Version(version("jaxlib")) < Version("0.11")
# The tests compile thousands of small programs that run once or a few times: without LLVM's and
# XLA's costly passes a training step of the tiny BERT compiles in about a quarter of the CPU time.
# With `--full` programs are compiled as usual.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *(["--xla_cpu_use_fusion_emitters=false"] if FUSION_EMITTERS else []),
)


def xla_flags(devices: int) -> str:
    """Return the session's XLA_FLAGS with another number of CPU devices."""
    flags = os.environ["XLA_FLAGS"].split()
    return " ".join(
        [flag for flag in flags if not flag.startswith(DEVICES)] + [f"{DEVICES}={devices}"]
    )
