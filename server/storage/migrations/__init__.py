"""The schema's history: versions/ in their order, each a step that is whole or absent."""
