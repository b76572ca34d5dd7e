"""Finds what nobody initialised: marks memory, and looks for marks that are left."""
