"""Orthogonal matrices: formed of random reflectors by products, not drawn element by element."""
