"""Triangle meshes: extraction, repair, decimation, unwrapping, textures, reading and writing. Knows nothing of fields."""
