"""Publishing: cards, and commits to the Hub."""
