"""Investigator: looks for the contributing causes of an incident from one angle, and for the work that would remove them."""
