"""What all pictures share."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito (2008), then darker shades: told apart with colour-blind eyes and in print.
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000",
    "#5D3A9B", "#8C8C8C", "#804000", "#004D40", "#B00058", "#7FA800", "#3B3BFF", "#C0A98E",
)  # fmt: skip

# Where lines of many methods cross, colour alone does not tell them apart.
MARKERS = "os^Dv<>ph*XP"


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of this size in inches."""
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def plain(name: object) -> str:
    """A name as text to be drawn: Matplotlib takes what stands between dollars for mathematics."""
    return str(name).replace("$", r"\$")
