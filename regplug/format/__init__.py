"""Bundle format 1 on disk, as ``docs/bundle.md`` specifies it: reading, checking, writing. Imports no torch."""
