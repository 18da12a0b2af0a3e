"""The report of a comparison: its typed model, what it says, and the page."""
