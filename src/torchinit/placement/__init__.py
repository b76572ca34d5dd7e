"""Which part of a logical tensor a tensor holds: shapes and offsets in, boxes out."""
