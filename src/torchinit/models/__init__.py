"""Whole models: initialises every parameter by rules or as its constructor does, keyed by name."""
