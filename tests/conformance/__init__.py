"""One suite per interface, run against every back end."""
