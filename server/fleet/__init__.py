"""The machines: what they say, how their updates end, who is silent, what they need."""
