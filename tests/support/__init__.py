"""What the tests stand on: private servers, a scriptable receiver, and a ledger that counts by key."""
