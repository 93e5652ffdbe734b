"""The built-in readouts, one family a file."""
