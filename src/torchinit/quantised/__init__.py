"""Weights that are born quantised: payload and scales of blocks from the key of their masters."""
