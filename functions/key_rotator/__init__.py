"""Key rotator: new signing keys every 90 days, without a message lost."""
