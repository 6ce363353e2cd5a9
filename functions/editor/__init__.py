"""Editor: merges the reviews of a change's files into one, ranked, with a summary and a verdict."""
