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


def keep_output_apart() -> None:
    """Send what libraries print from C++, such as Gloo's greeting, to standard error.

    A program may read the command's own output.
    """
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


if __name__ == "__main__":
    keep_output_apart()
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
