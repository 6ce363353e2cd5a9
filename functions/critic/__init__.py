"""Critic: argues for or against a text, round by round."""
