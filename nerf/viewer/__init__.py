"""The viewer without a toolkit: cameras, settings, frames at interactive speed, and the session that trains beside them.

The windows (``nerf/gui.py``, ``nerf/web.py``) show what this package renders and pass on what the user does.
"""
