"""What is deployed: one folder per function."""
