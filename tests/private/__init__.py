"""What private kinds promise: nothing of a call is found by who has no key."""
