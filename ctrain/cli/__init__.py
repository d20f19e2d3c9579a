"""Room of the command line: the same verbs as client and jobs. `--help` loads neither ray nor torch."""
