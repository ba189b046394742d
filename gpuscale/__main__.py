"""``python -m gpuscale`` is the command ``gpuscale``."""

import sys

from gpuscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
