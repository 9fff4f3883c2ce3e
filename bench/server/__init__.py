"""What the Security Server costs, each beside a peer in the same run."""
