"""Whole models: every parameter by rules or by the model's own init, keyed by its name."""
