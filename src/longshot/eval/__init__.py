"""How good a base is: tasks with known answers, scores with intervals, controls and ceilings, and a report."""
