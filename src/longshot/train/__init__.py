"""Training: the stream of scenes, the loop, checkpoints, and the three stages of LCT."""
