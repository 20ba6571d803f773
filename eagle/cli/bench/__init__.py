"""`eagle bench` and its tables; knows options and words, and measures nothing itself."""
