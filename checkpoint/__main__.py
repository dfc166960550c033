# PYTHON_ARGCOMPLETE_OK
"""`python -m checkpoint`: the same as the command `checkpoint`."""

import sys

from checkpoint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
