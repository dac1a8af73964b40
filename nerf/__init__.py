"""The neural field, its renderer and its trainer. The reading order of the files is in docs/reading.md."""
