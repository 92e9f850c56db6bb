"""Matplotlib figures as PNG bytes, on machines without a screen."""

import io
from typing import Any, Literal


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (8.0, 3.0),
    layout: Literal["constrained"] | None = "constrained",
) -> tuple[Any, Any]:
    """Create a figure and its axes, drawn without any window system.

    Args:
        rows: Of axes.
        columns: Of axes.
        size: Width and height in inches.
        layout: "constrained" makes room for what each axis shows, and lays the figure out twice for that; None leaves
            the margins to the caller.

    Returns:
        ``(figure, axes)``; ``axes`` is always an array ``[rows, columns]``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def png(figure: Any) -> bytes:
    """Render the figure as PNG. Equal figures give equal bytes: the file contains no timestamp."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
