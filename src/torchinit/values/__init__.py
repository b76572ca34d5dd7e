"""What a region of a parameter is filled with: each kind of values, and how it is written."""
