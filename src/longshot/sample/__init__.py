"""Sampling: a mode builds a `Plan`, one loop runs it."""
