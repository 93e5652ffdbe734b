"""From a module to programs: the export backends, and what they compile with."""
