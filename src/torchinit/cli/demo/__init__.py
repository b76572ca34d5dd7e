"""``torchinit demo``: builds a real model in every way, times them and checks every parameter."""
