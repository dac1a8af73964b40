"""Guidance: what a diffusion model thinks of a rendered image."""
