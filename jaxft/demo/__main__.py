"""`python -m jaxft.demo NAME ...` is `jaxft assets NAME ...`."""

import sys

from jaxft.demo.main import main

sys.exit(main(sys.argv[1:]))
