"""The commands: ``torchinit demo`` and ``torchinit info``."""
