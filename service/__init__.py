"""How operating systems run Holdfast: units and launch scripts (docs/operations.md)."""
