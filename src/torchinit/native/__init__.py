"""The native modules, their calls with addresses and numbers, and torch's private names."""
