"""Posed photographs: file formats, scene normalisation, image storage, and batches of rays."""
