"""`eagle data`: conversations made and packed for training; knows options, no text."""
