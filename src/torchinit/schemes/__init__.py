"""What values: turns a logical shape and arguments into a distribution with its parameters."""
