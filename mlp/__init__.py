"""A narrow ReLU network whose rows pass through all layers while they are in the cache, and the slope of a read-out."""

from mlp.network import features, features_and_slope

__all__ = ["features", "features_and_slope"]
