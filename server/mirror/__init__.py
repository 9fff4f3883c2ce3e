"""The mirror: follows the vendor, rebuilds, verifies, and serves on what was signed."""
