"""What the picture of a report is drawn with: colours, markers, and matplotlib's settings.

Colours are those of Okabe and Ito (2008), safe for colour-blind readers, and brighter ones for dark
pages; each role also has a marker, for print in grey.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Style(NamedTuple):
    """The colours of a picture.

    Attributes:
        ink: of lines, text and black markers.
        ground: of the page that it stands on.
        soft: of what matters less.
        grid: of grids.
        shade: of the foot.
        outlier: of outliers.
        colours: of the roles, by their names below.
    """

    ink: str
    ground: str
    soft: str
    grid: str
    shade: str
    outlier: str
    colours: dict[str, str]

    def colour(self, role: str) -> str:
        """The colour of a role."""
        return self.colours[_ROLES[role][0]]

    def marker(self, role: str, size: float, colour: str = "") -> dict[str, Any]:
        """Arguments of matplotlib's plot for the marker of a role; thin ones have no edge."""
        marker = _ROLES[role][1]
        colour = colour or self.colour(role)
        edge = colour if marker in "_*X" or size < 0.9 else self.ground
        scale = {"*": 1.6, "d": 0.9, "_": 1.1}.get(marker, 1.0)
        return {
            "ls": "", "marker": marker, "ms": MARKER * size * scale, "mfc": colour, "mec": edge,
            "mew": 0.9 if marker == "_" else 0.3 if edge == self.ground else 0.0,
        }  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """Of matplotlib."""
        parts = ("text", "axes.label", "axes.edge", "xtick", "ytick")
        names = (f"{part}{'' if '.' in part else '.'}color" for part in parts)
        return {
            "font.family": "DejaVu Sans", "font.size": 8.0, "axes.linewidth": 0.6,
            "axes.spines.top": False, "axes.spines.right": False, "grid.color": self.grid,
            "grid.linewidth": 0.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
            "xtick.major.size": 2.5, "ytick.major.size": 2.5, "svg.fonttype": "none",
            "pdf.fonttype": 42, "axes.facecolor": "none", **dict.fromkeys(names, self.ink),
        }  # fmt: skip


MARKER = 5.2  # points, of the largest
# The colour and the marker of each role.
_ROLES = {
    "embedding": ("black", "*"), "q": ("blue", "o"), "k": ("sky", "v"), "v": ("green", "^"),
    "qkv": ("blue", "o"), "o": ("purple", "D"), "up": ("orange", "s"), "gate": ("yellow", "P"),
    "gate_up": ("yellow", "P"), "down": ("black", "X"), "router": ("grey", ">"),
    "in_proj": ("blue", "H"), "ssm": ("orange", "<"), "out_proj": ("purple", "p"),
    "conv1": ("blue", "v"), "conv2": ("orange", "D"), "conv3": ("sky", "s"),
    "downsample": ("purple", "P"), "conv": ("green", "h"), "norm": ("grey", "d"),
    "bias": ("grey", "_"), "head": ("black", "p"), "other": ("grey", "<"),
}  # fmt: skip
LIGHT = Style("#000000", "#FFFFFF", "#555555", "#E6E6E6", "#F5F5F5", "#C1121F", {
    "black": "#000000", "grey": "#7F7F7F", "blue": "#0072B2", "sky": "#56B4E9",
    "green": "#009E73", "purple": "#CC79A7", "orange": "#E69F00", "yellow": "#D6C400",
})  # fmt: skip
DARK = Style("#E6E6E6", "#16191F", "#A9AEB6", "#3A3F48", "#8080801F", "#FF6B6B", {
    "black": "#E6E6E6", "grey": "#9AA0A8", "blue": "#4B9CFF", "sky": "#8AD4FF",
    "green": "#2CC295", "purple": "#E29AC4", "orange": "#F0AE2B", "yellow": "#EBDD45",
})  # fmt: skip
