"""How fast the models train and evaluate, beside what the machine could do at most and beside other libraries."""
