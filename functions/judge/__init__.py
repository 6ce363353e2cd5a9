"""Judge: weighs the arguments of a debate and says what must change."""
