"""The tape: code that draws is run on memory that nobody touches, and what it asks for is kept."""
