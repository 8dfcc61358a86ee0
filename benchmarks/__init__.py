"""What is measured, and how: each module is a command of its own."""

import os

from jaxft.launch.platforms import leave_out_absent_tpu

leave_out_absent_tpu(os.environ)  # as the command line does, before anything here imports jax
