"""What the server speaks over HTTP: the API, the feed, notifications, limits."""
