"""The ``torchinit`` command: ``demo``, ``checkpoint``, ``report`` and ``info``."""
