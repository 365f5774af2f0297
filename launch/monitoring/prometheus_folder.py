"""Where a run keeps what Prometheus needs; known without Ray to the command that starts it."""

PROMETHEUS_FOLDER = "prometheus"
TARGETS_FILE = "targets.json"
