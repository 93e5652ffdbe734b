"""Bundle format 1 on disk, as ``docs/bundle.md`` specifies it: read, checked, written. Imports no torch."""
