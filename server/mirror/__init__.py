"""The mirror: what the vendor signed, fetched cheaply and served all or not at all."""
