"""Planner: turns a brief into a title, a summary and the questions that a report must answer."""
