"""Calls that leave the platform at somebody else's wish: to addresses of the public internet, and to no others."""
