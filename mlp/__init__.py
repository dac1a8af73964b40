"""A narrow ReLU network fused over its layers, and the gradient of a linear read-out in its inputs."""

from mlp.mlp import features, features_and_slope

__all__ = ["features", "features_and_slope"]
