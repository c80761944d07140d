"""Detection data sets: formats, decoding, checks, and a synthetic set. Importing it needs no torch."""
