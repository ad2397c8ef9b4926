"""``python -m pyro_scale``: the command line."""

from pyro_scale.cli import main

main()
