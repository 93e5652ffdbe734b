"""From entry points to a checked choice: plugins, entries, names, options, widths. Imports no torch."""
