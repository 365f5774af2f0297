"""Named settings, one YAML file each, laid over the defaults of the code they configure."""
