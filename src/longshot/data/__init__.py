"""From raw films to training scenes: stages of rows in, rows out. `pipeline.py` runs them, `stage.py` says what one is."""
