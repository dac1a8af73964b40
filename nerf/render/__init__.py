"""From a field and rays to pixels: the render paths, the occupancy grid, backgrounds."""
