"""The grid backbone on the hash grid of tiny-cuda-nn, where that is installed; its networks are those of the default one."""

from nerf.config.groups import FieldConfig
from nerf.fields.encoding import grid_layout
from nerf.fields.tcnn import TcnnGridEncoder
from nerf.network_grid import GridField


class TcnnField(GridField):
    """:class:`GridField` with another encoder of the same grid."""

    def make_encoder(self, config: FieldConfig) -> TcnnGridEncoder:
        """The encoder of tiny-cuda-nn.

        Raises:
            UserError: it does not load.
        """
        return TcnnGridEncoder(grid_layout(config))
