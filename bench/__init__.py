"""The bench: measures tfpool beside a reference, in one run, repeat by repeat. ``python -m bench list``."""
