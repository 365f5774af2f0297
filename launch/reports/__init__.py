"""What is told of a run afterwards: evaluations with intervals, and its page."""
