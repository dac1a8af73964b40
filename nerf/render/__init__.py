"""Render paths: from a field and rays to pixels."""
