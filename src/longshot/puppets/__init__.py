"""Puppets: a small procedural world of multi-shot scenes whose ground truth is known (numpy only).

world.py says what can exist, render.py draws it, words.py captions it, score.py reads it back from pixels.
"""
