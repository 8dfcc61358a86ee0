"""The supervised process of a run: `jaxft` with exit codes for its parent."""

from __future__ import annotations

import os
import sys
import time
import traceback

import jax

from jaxft.cli.main import main
from jaxft.launch.cluster import PROCESS
from jaxft.launch.team import COMPUTATION_FAILED, STOPPED

# Process 0 serves what the others still read when all fail for the same reason.
LAST_OF_THE_FIRST = 1.0


def end(code: int) -> None:
    """Exit at once: at its end jax would wait for the others, which wait for this process."""
    if os.environ.get(PROCESS) == "0":
        time.sleep(LAST_OF_THE_FIRST)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except jax.errors.JaxRuntimeError:
        traceback.print_exc()
        end(COMPUTATION_FAILED)
    except BaseException:
        traceback.print_exc()
        end(1)
    if code not in (0, STOPPED):
        end(code)
    sys.exit(code)
