"""What is in a model: every parameter measured, judged and drawn."""
