"""`eagle verify` and its verdicts; knows options and words, and tests nothing itself."""
