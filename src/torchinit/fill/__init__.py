"""The door: fills a tensor with given values, by a key, now or later, by kernels or by torch."""
