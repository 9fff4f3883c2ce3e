"""The Security Server's benches."""
