"""A narrow network fused over its layers, and the gradient of a linear read-out in its inputs."""

from mlp.mlp import WIDTH_STEP, features, features_and_slope

__all__ = ["WIDTH_STEP", "features", "features_and_slope"]
