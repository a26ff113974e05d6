"""longshot: multi-shot video generation by long context tuning."""

__version__ = "0.1.0"
