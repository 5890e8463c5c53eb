"""`python -m holdfast.agent`: the command `holdfast`, also where it is not installed."""

import sys

from holdfast.agent.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
