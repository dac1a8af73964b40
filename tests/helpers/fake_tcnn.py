"""A module that behaves as tiny-cuda-nn's Python binding where it is installed, on any device: its ``Encoding`` alone.

One flat parameter, levels one after the other; inputs in [0, 1]; outputs of the precision that was asked for, or of another.
"""

import sys
from types import ModuleType

import torch

from gridencoder import reference
from gridencoder.layout import GridLayout

KEYS = {
    "otype",
    "n_levels",
    "n_features_per_level",
    "log2_hashmap_size",
    "base_resolution",
    "per_level_scale",
    "interpolation",
}


class Encoding(torch.nn.Module):
    """``tinycudann.Encoding`` of a hash grid."""

    made: list["Encoding"] = []
    output_dtype: torch.dtype | None = None  # of a build that gives no other
    padding = 0  # columns that a build adds

    def __init__(self, n_input_dims, encoding_config, seed=1337, dtype=None):
        super().__init__()
        assert set(encoding_config) == KEYS and encoding_config["otype"] == "HashGrid"
        self.config, self.seed, self.dtype = encoding_config, seed, dtype or torch.float16
        base, levels = encoding_config["base_resolution"], encoding_config["n_levels"]
        self.layout = GridLayout(
            n_input_dims,
            levels,
            encoding_config["n_features_per_level"],
            base,
            round(base * encoding_config["per_level_scale"] ** (levels - 1)),
            encoding_config["log2_hashmap_size"],
            interpolation=encoding_config["interpolation"].lower(),
        )
        generator = torch.Generator().manual_seed(seed)
        table = 2e-4 * torch.rand(self.layout.output_dim // levels * self.layout.rows, generator=generator) - 1e-4
        self.params = torch.nn.Parameter(table)  # the master copy is float32 whatever the precision
        self.n_output_dims = self.layout.output_dim + self.padding
        self.made.append(self)

    def forward(self, x):
        """[M, D] in [0, 1] -> [M, n_output_dims]."""
        assert len(x) > 0 and x.dtype == torch.float32
        table = self.params.view(-1, self.layout.level_dim)
        values = reference.encode(2 * x - 1, table, self.layout, 1.0, self.layout.num_levels)
        values = torch.nn.functional.pad(values, (0, self.padding), value=1.0)
        return values.to(self.output_dtype or self.dtype)


def install(monkeypatch, output_dtype=None, padding=0):
    """Put it where ``import tinycudann`` finds it for a test; returns its class."""
    module = ModuleType("tinycudann")
    module.Encoding = type("Encoding", (Encoding,), {"made": [], "output_dtype": output_dtype, "padding": padding})
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    return module.Encoding
