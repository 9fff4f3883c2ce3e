"""The privileged, long-lived process: boots, flips, watches, reverts, answers agentctl."""
