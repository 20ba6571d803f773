"""`eagle train`; knows options and how a run is told of, and trains nothing itself."""
