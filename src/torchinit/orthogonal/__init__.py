"""Orthogonal matrices: formed of random reflectors, not drawn element by element."""
