"""Which values: from a logical shape and arguments to a distribution with its parameters."""
