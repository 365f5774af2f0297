"""The live web page of a run, which reads its directory and asks it for changes through files."""
