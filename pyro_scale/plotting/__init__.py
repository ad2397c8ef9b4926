"""One function per figure; each returns a matplotlib Figure and leaves rcParams alone."""

from pyro_scale.plotting.clusters import embed, plot_run
from pyro_scale.plotting.comparison import plot_comparison, plot_ladder

__all__ = ["embed", "plot_comparison", "plot_ladder", "plot_run"]
