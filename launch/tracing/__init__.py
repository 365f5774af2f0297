"""Where a run's time goes: seconds by process, stacks of what is slow, a trace of one window."""
