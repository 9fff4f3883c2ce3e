"""agentctl: what administrators type; speaks only to the guardian's sockets."""
