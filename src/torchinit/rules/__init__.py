"""What each parameter gets: schemes, and rules that choose them by name or type of module."""
