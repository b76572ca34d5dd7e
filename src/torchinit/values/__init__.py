"""The kinds of values that fill a region of a parameter, and the code that writes them."""
