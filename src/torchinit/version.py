"""The versions, in the one place that has them."""

__version__ = "0.2.0"
"""The version, as ``torchinit --version`` prints it."""

STREAM_VERSION = 2
"""The version of all number streams: it goes up when any value changes for the same key."""
