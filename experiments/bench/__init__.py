"""How fast the models train, beside other libraries, and how long one waits for a classifier."""
