"""`python -m jaxft` is `jaxft`."""

import sys

from jaxft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
