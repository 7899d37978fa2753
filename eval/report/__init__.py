"""A run as something to read: one HTML file that needs nothing else, and Markdown."""
