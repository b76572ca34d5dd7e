"""Intercepts the calls of torch.nn.init in existing code, and serves them with torchinit."""
