"""`serverctl`: runs the server, and asks a running one over its API."""
