"""Run the command line with ``python -m pyro_scale``."""

from pyro_scale.cli import main

main()
