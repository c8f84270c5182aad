"""What all pictures of a report share: colours, type sizes, and matplotlib without pyplot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple


class Theme(NamedTuple):
    """Colours of a picture; the background is transparent on the page."""

    text: str
    muted: str
    grid: str
    background: str
    series: tuple[str, ...]  # told apart also by colour-blind readers


LIGHT = Theme(
    "#1f2328",
    "#6b7280",
    "#e5e7eb",
    "#ffffff",
    ("#2563eb", "#d9480f", "#0f8a6d", "#9333ea", "#b45309", "#475569", "#be185d", "#0891b2", "#65a30d", "#111827"),
)
DARK = Theme(
    "#e6e8eb",
    "#9aa3ad",
    "#2b3138",
    "#14171a",
    ("#6ea8fe", "#ff9f6b", "#4fd1b0", "#c79bff", "#f2c063", "#a9b4c0", "#f78fb3", "#67d5e8", "#b5e06b", "#ffffff"),
)
WIDE, NARROW = 8.4, 4.2  # inches: a page, and a phone's screen with the same size of type
DPI = 160


def picture(draw: Callable[[Any], None], theme: Theme, size: tuple[float, float], *, transparent: bool = True) -> bytes:
    """PNG bytes of what `draw(figure)` draws; size in inches."""
    figure_class, style = _matplotlib()
    with style(_rc(theme)):
        figure = figure_class(figsize=size, dpi=DPI, layout="constrained")
        figure.patch.set_alpha(0.0 if transparent else 1.0)
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06, wspace=0.04, hspace=0.04)
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", transparent=transparent)
    return buffer.getvalue()


def _rc(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 9,
        "font.family": ["DejaVu Sans"],
        "text.color": theme.text,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "figure.facecolor": theme.background,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": theme.text,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "ytick.left": False,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "legend.labelcolor": theme.text,
        "path.simplify": True,
    }


def _matplotlib() -> tuple[Any, Any]:
    """(Figure, rc_context) without pyplot: no global state, no display, safe beside a user's own figures."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("a report needs matplotlib to draw its curves: pip install 'ctrlrl[report]'") from None

    def figure(**kwargs: Any) -> Any:
        made = Figure(**kwargs)
        FigureCanvasAgg(made)
        return made

    return figure, rc_context
