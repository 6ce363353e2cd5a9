"""Splitter: cuts a unified diff into its files, with the line numbers of the new files; asks no model."""
