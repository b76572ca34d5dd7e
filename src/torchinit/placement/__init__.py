"""Where a tensor lies in its logical tensor: shapes and offsets in, boxes out."""
