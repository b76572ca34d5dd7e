"""``python -m torchinit``."""

import sys

from torchinit.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
