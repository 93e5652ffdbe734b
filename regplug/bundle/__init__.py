"""What users call: export, load, verify, sign."""
