"""``python -m torchinit``."""

import sys

from torchinit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
