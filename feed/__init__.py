"""The signed update feed: what it says, how it is trusted, fetched and rebuilt."""
