"""The platform's own package: everything that more than one function needs."""
