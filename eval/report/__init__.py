"""Reports of a run: one self-contained HTML file, Markdown, and tables for a terminal."""
