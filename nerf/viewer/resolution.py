"""Dynamic resolution: the render scale that a frame can afford, from what earlier frames took."""

import math

FORGET = 0.85  # weight of a measurement for each newer one
MIN_SCALE = 1.0 / 16.0  # of the image's side
MIN_PIXELS = 32 * 32  # of a frame, however slow
FIRST_PIXELS = 64 * 64  # of a frame of unknown cost
FULL = 0.9  # a scale above it is rounded up: the picture is then final


class DynamicResolution:
    """Chooses render scales for one kind of frame on one machine.

    The time of a frame is a + b * pixels. Both are fitted to the times of the newest frames (weighted least squares, each frame
    counting :data:`FORGET` times as much as the next), a >= 0, b > 0. Marching triangles out of a grid, for instance, takes its
    time however few the pixels are; without ``a`` such a scene would be shown at the lowest scale for nothing.

    Args:
        first: pixels of a frame of unknown cost.
    """

    def __init__(self, first: int = FIRST_PIXELS):
        self.first = first
        self._sums = [0.0] * 5  # of weights 1, p, p^2, t, p t; p in pixels, t in seconds
        self._warm = False

    @property
    def known(self) -> bool:
        """Whether a frame was measured."""
        return self._sums[0] > 0.0

    def observe(self, pixels: int, seconds: float) -> None:
        """Take the time of a frame into account; the first one also loads kernels and fills caches, and does not count."""
        if not self._warm:
            self._warm = True
            return
        new = (1.0, pixels, pixels * pixels, seconds, pixels * seconds)
        self._sums = [FORGET * old + one for old, one in zip(self._sums, new, strict=True)]

    def cost(self) -> tuple[float, float]:
        """(seconds of any frame, seconds a pixel) as fitted."""
        n, p, pp, t, pt = self._sums
        if n == 0.0:
            return 0.0, 1.0 / self.first
        spread = n * pp - p * p
        if spread > 1e-6 * n * pp:
            slope = (n * pt - p * t) / spread
            if slope > 0.0 and t - slope * p >= 0.0:
                return (t - slope * p) / n, slope
        return 0.0, pt / pp  # frames of one size, or times that fall with the size: all of it is of the pixels

    def scale(self, pixels: int, target: float) -> float:
        """Scale of the sides, in (0, 1], at which a frame takes so long.

        Args:
            pixels: of a frame at full size.
            target: seconds. Where the fixed part alone takes as long, the pixels may take the same again.
        """
        fixed, each = self.cost()
        affordable = max(target - fixed, fixed) / each if self.known else self.first
        side = math.sqrt(max(affordable, MIN_PIXELS) / max(pixels, 1))
        return 1.0 if side >= FULL else max(side, MIN_SCALE)

    def chunk(self, seconds: float, least: int, most: int) -> int:
        """How many pixels take ``seconds``, within limits: what is rendered between two looks at whether to go on."""
        return int(min(max(seconds / self.cost()[1], least), most))
