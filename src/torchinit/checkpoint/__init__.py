"""Initialised checkpoints of any size: safetensors shards, filled piece by piece into the files."""
