"""The two slots and the boot record."""
