"""Calls of torch.nn.init that existing code makes, served by torchinit."""
