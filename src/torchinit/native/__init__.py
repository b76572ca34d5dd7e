"""Addresses and numbers: the native modules, how they are called, and what of torch is private."""
