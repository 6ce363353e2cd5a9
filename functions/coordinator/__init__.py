"""Coordinator: breaks a goal into steps for other agents."""
