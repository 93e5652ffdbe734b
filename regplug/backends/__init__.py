"""Export backends: each makes one kind of program out of a module."""
