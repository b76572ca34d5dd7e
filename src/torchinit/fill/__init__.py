"""The one door: what, by which key, where; and how it is done, now, later or by torch."""
