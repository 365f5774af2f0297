"""The front: commands, configuration, control of a run, monitoring and the web page."""
