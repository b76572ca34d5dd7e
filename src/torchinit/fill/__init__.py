"""The door: fills a tensor with a draw and a key, now or in a batch, by kernels or by torch."""
