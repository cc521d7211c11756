"""The command line: `python -m softjax` with `demo`, `explain` or `audit`."""

import sys

from .tools.command_line import main as main

if __name__ == "__main__":
    sys.exit(main())
