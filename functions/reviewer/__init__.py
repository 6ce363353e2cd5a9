"""Reviewer: reviews one file of a change; findings on lines that the change does not show are dropped."""
