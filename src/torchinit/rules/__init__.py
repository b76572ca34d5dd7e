"""Schemes, and rules that choose a parameter's scheme by its name or module type."""
