"""Which stream: from a generator to the key of one fill."""
