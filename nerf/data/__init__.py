"""Photographs with poses: formats, normalisation, images in memory, and batches of rays from them."""
