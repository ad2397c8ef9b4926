"""SCALE as Pyro programs: every objective computed twice and compared."""
