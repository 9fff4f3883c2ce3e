"""The server's memory: tables, migrations, and one writer."""
